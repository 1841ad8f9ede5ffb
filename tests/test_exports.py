"Tagged sets as labelling tools and people really write them"
import json
import pytest
from PIL import Image
from dalnet.coco import COCODataset
from dalnet.core import InputError
from dalnet.tagged import TaggedImageDataset
from test_bad_data import coco, mine, one_line, picture, runs, state, table
from test_cli import command


def content(source, **options):
    "{name: tags} of a set"
    ds = TaggedImageDataset(source, **options)
    return {ds.names[i]: [name for name, tag in zip(ds.classes, ds.tag_row(i)) if tag] for i in range(len(ds)) if ds[i]}


def folder_of(root, names):
    for i, name in enumerate(names): picture(root/name, i)
    return root


# exports

def test_label_studio_csv(mine):
    text = '''image,id,choice
/data/upload/1/a.jpg,1,cat
/data/upload/b.jpg,2,dog
"/data/local-files/?d=c.jpg",3,"{""choices"": [""cat"", ""dog""]}"
'''
    assert content(table(mine.parent, text)) == dict(a=['cat'], b=['dog'], c=['cat', 'dog'])


def result(*choices, **where): return dict(type='choices', value=dict(choices=list(choices)) | where)


def task(name, *choices):
    "A task of Label Studio"
    return dict(data=dict(image=f'http://studio/data/{name}'), annotations=[dict(result=[result(*choices)])])


def test_label_studio_json(mine):
    tasks = [task('a.jpg', 'cat'), task('b.jpg', 'dog'), task('c.jpg', 'cat', 'dog')]
    tasks[0]['annotations'].append(dict(was_cancelled=True, result=[result('dog')]))
    tasks[1]['annotations'][0]['result'].append(result('cat', x=1, y=1))                # the choice for a box
    source = table(mine.parent, json.dumps(tasks), 'export.json')
    assert content(source) == dict(a=['cat'], b=['dog'], c=['cat', 'dog'])


def test_cvat(mine):
    rows = ''.join(f'<image id="{i}" name="{name}.jpg"><tag label="{tag}"/></image>'
                   for i, (name, tag) in enumerate(dict(a='cat', b='dog').items()))
    source = table(mine.parent, f'<annotations>{rows}</annotations>', 'annotations.xml')
    assert content(source) == dict(a=['cat'], b=['dog'])


def test_fiftyone(mine):
    folder_of(mine.parent, ['data/a.jpg', 'data/b.jpg', 'data/c.jpg'])
    text = json.dumps(dict(classes=['cat', 'dog'], labels=dict(a=0, b=[1, 0], c=None)))
    labels = table(mine.parent, text, 'labels.json')
    one_line(lambda: TaggedImageDataset(labels), 'c.jpg', 'has no tag')
    assert content(labels, allow_untagged=True) == {'data/a': ['cat'], 'data/b': ['cat', 'dog'], 'data/c': []}
    one = dict(_cls='Classification', label='cat')
    several = dict(_cls='Classifications', classifications=[dict(label='dog')])
    samples = [dict(filepath='data/a.jpg', ground_truth=one),
               dict(filepath='data/b.jpg', ground_truth=several, guess=one | dict(label='x'))]
    source = table(mine.parent, json.dumps(dict(samples=samples)), 'samples.json')
    assert content(source) == {'data/a': ['cat'], 'data/b': ['dog']}


def test_huggingface_folder(tmp_path):
    root = folder_of(tmp_path/'hf', ['train/a.jpg', 'train/b.jpg', 'val/c.jpg'])
    table(root/'train', 'file_name,tags\na.jpg,cat\nb.jpg,dog\n', 'metadata.csv')
    table(root/'val', 'file_name,tags\nc.jpg,cat\n', 'metadata.csv')
    assert content(root) == {'train/a': ['cat'], 'train/b': ['dog']}
    assert content(root, split='val', classes=('cat', 'dog')) == {'val/c': ['cat']}
    (root/'train/b.jpg').unlink()
    one_line(lambda: TaggedImageDataset(root), 'train/b.jpg')
    assert content(root, skip_bad=True) == {'train/a': ['cat']}


# splits and folders

def test_split_on_some_rows(mine):
    lines = [dict(image='a.jpg', tags=['cat'], split='train'), dict(image='b.jpg', tags=['dog']),
             dict(image='c.jpg', tags=['cat'], split=' Val ')]
    source = table(mine.parent, '\n'.join(map(json.dumps, lines)), 'x.jsonl')
    assert list(content(source)) == ['a']
    assert list(content(source, split='VAL')) == ['c'] and list(content(source, part='val')) == ['c']
    one_line(lambda: TaggedImageDataset(source, split='test'), 'test', 'train', 'val')
    lines[1]['split'] = 3
    table(mine.parent, '\n'.join(map(json.dumps, lines)), 'x.jsonl')
    one_line(lambda: TaggedImageDataset(source), 'row 2', 'split')


def test_folders_for_classes(tmp_path):
    classes = folder_of(tmp_path/'classes', ['train/1.jpg', 'bus/2.jpg'])               # trains, not a split
    assert content(classes) == {'train/1': ['train'], 'bus/2': ['bus']}
    splits = folder_of(tmp_path/'splits', ['Train/cat/1.jpg', 'Train/dog/2.jpg', 'Val/cat/3.jpg'])
    assert content(splits) == {'Train/cat/1': ['cat'], 'Train/dog/2': ['dog']}
    assert content(splits, split='val') == {'Val/cat/3': ['cat']}
    (classes/'bus/lost.jpg').symlink_to(tmp_path/'nowhere.jpg')
    one_line(lambda: TaggedImageDataset(classes), 'lost.jpg')
    assert len(content(classes, skip_bad=True)) == 2
    picture(classes/'stray.jpg')
    one_line(lambda: TaggedImageDataset(classes), 'stray.jpg', "no class's folder")


def test_forms_of_names(mine):
    root = mine.parent
    source = table(root, f'image,tags\n./a.jpg,cat\n././b.jpg,dog\n{root/"c.jpg"},cat\n')
    assert content(source) == dict(a=['cat'], b=['dog'], c=['cat'])
    table(root, 'image,tags\n./a.jpg,cat\na.jpg,dog\n')
    one_line(lambda: TaggedImageDataset(source), 'row 3', 'twice')


def test_unknown_classes(mine):
    one_line(lambda: TaggedImageDataset(mine, classes=('cat',)), 'row 3', 'unknown class "dog"')
    ds = TaggedImageDataset(mine, classes=('cat',), skip_bad=True)
    assert list(ds.names) == ['a'] and len(ds.skipped) == 2
    table(mine.parent, 'image,tags\na.jpg,0\nb.jpg,1\n')                               # numbers count the classes
    assert content(mine, classes=('cat', 'dog')) == dict(a=['cat'], b=['dog'])
    table(mine.parent, 'image,tags\na.jpg,0\nb.jpg,²\n')
    one_line(lambda: TaggedImageDataset(mine, classes=('cat', 'dog')), 'row 3', '²')


def test_results_stay_in_their_folder(mine, tmp_path):
    rows = [f'{mine.parent/name}.jpg,cat;dog\n' for name in 'abc']
    absolute = table(mine.parent, 'image,tags\n' + ''.join(rows))
    options = ['--data', absolute, '--preset', 'demo', '--iterations', 1, '--batch-size', 2, '--out', tmp_path/'run']
    assert command('dalnet_train', *options)[0] == 0
    before = state(mine.parent)
    code, _, err = command('dalnet_pseudo_labels', tmp_path/'run/iter_000001', '--out', tmp_path/'labels')
    labels = sorted(path.name for path in (tmp_path/'labels').iterdir() if path.suffix == '.png')
    assert code == 0 and labels == ['a.png', 'b.png', 'c.png'], err
    assert state(mine.parent) == before


# COCO

@pytest.mark.parametrize('image, words', [
    (dict(id='one'), 'one'), (dict(id=2**70), '1180591620717411303424'), (dict(height=24.5), 'height'),
    (dict(width=0), 'width'), (dict(file_name=7), 'name')])
def test_coco_images(tmp_path, image, words):
    root = coco(tmp_path/'coco', [{}])
    path = root/'annotations/instances_val2017.json'
    about = json.loads(path.read_text())
    about['images'][0] |= image
    path.write_text(json.dumps(about))
    one_line(lambda: COCODataset(root, 'val'), path.name, words)


def test_coco_odd_annotations(tmp_path):
    def box(x): return [[x, 2, x + 6, 2, x + 6, 20, x, 20]]
    twice = [dict(id=5, segmentation=box(2)),
             dict(id=5, category_id=90, segmentation=box(20), area=None)]               # one id twice, no area
    assert COCODataset(coco(tmp_path/'coco', twice), 'val', masks=True)[0]['mask'].unique().tolist() == [0, 1, 2]
    none = coco(tmp_path/'none', [dict(segmentation=None)])
    one_line(lambda: COCODataset(none, 'val', masks=True), 'annotation 1')
    far = coco(tmp_path/'far', [dict(segmentation=[[0, 0, 1e12, 0, 1e12, 1e12]])])
    one_line(lambda: COCODataset(far, 'val', masks=True), 'annotation 1', 'far out')


def test_coco_names_with_a_colon(tmp_path):
    root = coco(tmp_path/'coco', [dict(segmentation=runs(24, 32))], [dict(file_name='a:b.jpg')])
    (root/'val2017/000000000001.jpg').rename(root/'val2017/a:b.jpg')
    ds = COCODataset(root, 'val', masks=True)
    assert ds.names == ['a:b'] and ds[0]['mask'].unique().tolist() == [1]


def test_hidden_files_and_folders_are_nothing(tmp_path):
    "What a Mac or a notebook leaves beside the images neither hides the splits nor becomes a class"
    for part in ('train', 'val'):
        for name in ('cat', 'dog'):
            (tmp_path/part/name).mkdir(parents=True)
            Image.new('RGB', (16, 16), 'red' if name == 'cat' else 'blue').save(tmp_path/part/name/f'{part}.png')
    (tmp_path/'train/.DS_Store').touch()
    (tmp_path/'train/cat/._train.png').touch()
    (tmp_path/'train/.ipynb_checkpoints').mkdir()
    (tmp_path/'train/.ipynb_checkpoints/a.png').write_bytes((tmp_path/'train/cat/train.png').read_bytes())
    found = TaggedImageDataset(tmp_path)
    assert found.classes == ('cat', 'dog') and found.split == 'train'
    assert list(found.names) == ['train/cat/train', 'train/dog/train']


def test_the_only_split_is_taken(tmp_path):
    for k in range(2): Image.new('RGB', (16, 16)).save(tmp_path/f'{k}.png')
    (tmp_path/'a.csv').write_text('image,tags,split\n0.png,cat,default\n1.png,dog,default\n')
    found = TaggedImageDataset(tmp_path/'a.csv')
    assert found.split == 'default' and len(found) == 2


def test_background_is_no_class(tmp_path):
    Image.new('RGB', (16, 16)).save(tmp_path/'0.png')
    (tmp_path/'a.csv').write_text('image,tags\n0.png,cat;Background\n')
    with pytest.raises(InputError, match='a class is called "background"'): TaggedImageDataset(tmp_path/'a.csv')
