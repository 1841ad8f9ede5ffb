"Hostile and broken data: it works, or one line names file and row; nothing is written into the user's folder"
import io, json, shutil, subprocess, sys, tarfile, zlib
from itertools import product
from pathlib import Path
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from scipy.io import savemat
from dalnet.coco import COCODataset
from dalnet.core import InputError
from dalnet.dataset import read_regions
from dalnet.images import save_mask
from dalnet.tagged import TaggedImageDataset
from dalnet.batches import SampleStream
from dalnet.text import encode_text
from dalnet.transforms import TrainTransform
from dalnet.voc import VOCDataset, _load_sbd
from test_cli import command, error_of

LAUGHS = ''.join(f'<!ENTITY {name} "{f"&{inner};"*10}">' for inner, name in zip('abcdefgh', 'bcdefghi'))
BOMB = f'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol">{LAUGHS}]>'
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY secret SYSTEM "file:///etc/hostname">]>'


def one_line(make, *words):
    "The line of the `InputError` that `make` must raise"
    with pytest.raises(InputError) as info: make()
    line = str(info.value)
    assert '\n' not in line and all(word in line for word in words), line
    return line


def picture(path, seed=0, size=(32, 24)):
    "Write random pixels into an image file"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def table(folder, text, name='tags.csv'):
    "Write a text file"
    (folder/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder/name


@pytest.fixture
def mine(tmp_path):
    "A folder with three pictures and a table"
    for i, name in enumerate('abc'): picture(tmp_path/f'mine/{name}.jpg', i)
    return table(tmp_path/'mine', 'image,tags\na.jpg,cat\nb.jpg,dog\nc.jpg,cat;dog\n')


def state(folder):
    "Everything in a folder, with sizes and times of change"
    stats = [(path, path.lstat()) for path in folder.rglob('*')]
    return sorted((str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in stats)


# XML

VOC_XML = [
    '', '<annotation>', 'no xml', '<?xml version="1.0" encoding="nonsense"?><a/>',
    BOMB + '<annotation><object><name>&i;</name></object></annotation>',
    OUTSIDE + '<annotation><object><name>&secret;</name></object></annotation>']


@pytest.mark.parametrize('text', VOC_XML)
def test_voc_xml(shapes, tmp_path, text):
    data = shutil.copytree(shapes, tmp_path/'data')
    name = (data/'ImageSets/Segmentation/train.txt').read_text().split()[0]
    (data/f'Annotations/{name}.xml').write_text(text)
    line = one_line(lambda: VOCDataset(data, 'train'), f'{name}.xml')
    secret = Path('/etc/hostname')
    assert not secret.is_file() or secret.read_text().strip() not in line.replace(name, '')
    left = VOCDataset(data, 'train', skip_bad=True)
    assert name not in left.names and len(left.skipped) == 1


CVAT_XML = [
    '<annotations><image',
    BOMB + '<annotations><image name="a.jpg"><tag label="&i;"/></image></annotations>',
    OUTSIDE + '<annotations><image name="a.jpg"><tag label="&secret;"/></image></annotations>']


@pytest.mark.parametrize('text', CVAT_XML)
def test_cvat_xml(mine, text):
    one_line(lambda: TaggedImageDataset(table(mine.parent, text, 'cvat.xml')), 'cvat.xml')


# images

@pytest.mark.parametrize('kind', ['jpg', 'png', 'webp', 'tif'])
def test_truncated_at_every_tenth(mine, kind):
    file = picture(mine.parent/f'x.{kind}')
    whole = file.read_bytes()
    source = table(mine.parent, f'image,tags\na.jpg,cat\nx.{kind},dog\n')
    assert len(TaggedImageDataset(source)) == 2
    for tenth in range(10):
        file.write_bytes(whole[:len(whole)*tenth//10])
        one_line(lambda: TaggedImageDataset(source), file.name)
        left = TaggedImageDataset(source, skip_bad=True)
        assert list(left.names) == ['a'] and len(left.skipped) == 1 and file.name in left.skipped[0]


def test_damaged_in_the_middle_is_found_when_it_is_loaded(mine):
    path = mine.parent/'b.jpg'
    data = path.read_bytes()
    scan = data.index(b'\xff\xda') + 40                                     # behind the header, which is whole
    path.write_bytes(data[:scan] + b'\xff\xd8\xff\xc4\x00\x02'*60 + data[-300:])
    ds = TaggedImageDataset(mine, transform=TrainTransform(16))
    bad = list(ds.names).index('b')
    one_line(lambda: ds[bad], 'b.jpg')
    stream = SampleStream(ds, 0, skip_bad=True)
    items = [stream[k] for k in range(3)]
    assert sum('b.jpg' in item['skipped'] for item in items) == 1
    assert {item['name'] for item in items} == {'a', 'c'}
    with pytest.raises(InputError): [SampleStream(ds, 0)[k] for k in range(3)]


def test_hundred_megapixels(mine):
    path = mine.parent/'large.png'
    Image.new('1', (10_000, 10_000)).save(path)
    Image.new('L', (10_000, 10_000), 77).save(mine.parent/'big.jpg')
    source = table(mine.parent, 'image,tags\nbig.jpg,cat\nlarge.png,dog\n')
    ds = TaggedImageDataset(source, transform=TrainTransform(64, (.5, 1.), 100))
    assert [item['image'].shape for item in ds] == [(3, 64, 64)]*2
    load = f'from dalnet.images import load_image; print(load_image({str(path)!r}).size)'
    done = subprocess.run([sys.executable, '-W', 'error', '-c', load], capture_output=True, text=True)
    assert done.stdout.strip() == '(10000, 10000)', done.stderr    # no warning, which -W would turn into an error


def test_an_image_that_says_it_is_far_too_large(mine):
    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return len(data).to_bytes(4, 'big') + kind + data + check.to_bytes(4, 'big')

    header = (60_000).to_bytes(4, 'big')*2 + b'\x08\x02\x00\x00\x00'
    chunks = chunk(b'IHDR', header), chunk(b'IDAT', zlib.compress(bytes(1000))), chunk(b'IEND', b'')
    (mine.parent/'bomb.png').write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(chunks))
    one_line(lambda: TaggedImageDataset(table(mine.parent, 'image,tags\nbomb.png,cat\n')), 'bomb.png')


# masks

def masks_of(mine, change):
    "A folder of masks for the three pictures, after a change to it"
    folder = mine.parent.parent/'masks'
    folder.mkdir(exist_ok=True)
    for name in 'abc': save_mask(np.ones((24, 32), np.uint8), folder/f'{name}.png')
    change(folder)
    return folder


@pytest.mark.parametrize('change, words', [
    (lambda folder: save_mask(np.ones((32, 24), np.uint8), folder/'b.png'), 'the mask is 24x32, the image 32x24'),
    (lambda folder: save_mask(np.full((24, 32), 3, np.uint8), folder/'b.png'), 'expected labels 0-2 or 255, got 3'),
    (lambda folder: Image.new('RGB', (32, 24)).save(folder/'b.png'), 'a colour image'),
    (lambda folder: (folder/'b.png').write_bytes(b''), 'cannot be decoded'),
    (lambda folder: (folder/'b.png').unlink(), 'no mask')])
def test_masks(mine, change, words):
    folder = masks_of(mine, change)
    line = one_line(lambda: list(TaggedImageDataset(mine, masks=folder)), 'b.png', words)
    assert str(folder) in line


def test_masks_at_ignore(mine):
    folder = masks_of(mine, lambda folder: save_mask(np.full((24, 32), 255, np.uint8), folder/'b.png'))
    assert TaggedImageDataset(mine, masks=folder)[1]['mask'].unique().tolist() == [255]


def test_training_on_a_table_opens_no_mask(mine, tmp_path):
    masks_of(mine, lambda folder: None)
    spy = f'''
import sys
opened, masks = [], {str(tmp_path/'masks')!r}
def note(event, args):
    if event in ('open', 'os.listdir', 'os.scandir'): opened.append(str(args[0]))
sys.addaudithook(note)
from dataclasses import replace
from dalnet.config import PRESETS
from dalnet.training import train
train(replace(PRESETS['demo'], data={str(mine)!r}, mask_folder=masks, out={str(tmp_path/'run')!r}, iterations=2,
              batch_size=2, save_every=2))
assert any(path.endswith('a.jpg') for path in opened), opened
assert not any(masks in path for path in opened), opened
'''
    done = subprocess.run([sys.executable, '-c', spy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# COCO

def coco(root, annotations, images=({},), categories=((1, 'person'), (90, 'toothbrush'))):
    "A dataset in COCO's layout; what is not given of images and annotations is filled in"
    (root/'annotations').mkdir(parents=True, exist_ok=True)
    images = [dict(id=number, file_name=f'{number:012d}.jpg', height=24, width=32) | given
              for number, given in enumerate(images, 1)]
    for image in images: picture(root/f'val2017/{image["id"]:012d}.jpg', image['id'])
    common = dict(image_id=1, category_id=1, iscrowd=0, area=50, segmentation=[[1, 1, 9, 1, 9, 9, 1, 9]])
    annotations = [dict(id=number) | common | given for number, given in enumerate(annotations, 1)]
    categories = [dict(id=number, name=name) for number, name in categories]
    content = json.dumps(dict(images=images, annotations=annotations, categories=categories))
    (root/'annotations/instances_val2017.json').write_text(content)
    return root


def runs(height, width):
    "Run lengths of a mask that is one everywhere"
    packed = rle.encode(np.asfortranarray(np.ones((height, width), np.uint8)))
    return dict(size=[height, width], counts=packed['counts'].decode())


@pytest.mark.parametrize('change, words', [
    (dict(segmentation=runs(32, 24)), 'drawn for 24x32'),
    (dict(segmentation=dict(size=[24, 32], counts=[5, 3])), '8 pixels'),
    (dict(segmentation=dict(size=[24, 32], counts='§§')), 'annotation 1'),
    (dict(segmentation=runs(20, 32) | dict(size=[24, 32])), '640 pixels'),
    (dict(segmentation=runs(32, 32) | dict(size=[24, 32])), '1024 pixels'),
    (dict(segmentation=[[1, 2, 3]]), 'annotation 1'),
    (dict(segmentation='x'), 'annotation 1'),
    (dict(category_id=2), 'category 2'),
    (dict(image_id=7), 'image 7')])
def test_coco_annotations(tmp_path, change, words):
    root = coco(tmp_path/'coco', [change, dict(image_id=2)], ({}, {}))
    one_line(lambda: COCODataset(root, 'val', masks=True), 'instances_val2017.json', words)
    if 'segmentation' in change:
        left = COCODataset(root, 'val', masks=True, skip_bad=True)
        assert left.names == ['000000000002'] and len(left.skipped) == 1


def test_coco_holes_empty_categories_and_rendering_again(tmp_path):
    categories = ((90, 'toothbrush'), (1, 'person'), (18, 'dog'))
    root = coco(tmp_path/'coco', [dict(category_id=90)], categories=categories)
    before = state(root)
    ds = COCODataset(root, 'val', masks=True)
    assert ds.classes == ('person', 'dog', 'toothbrush') and ds.tags.tolist() == [[0, 0, 1]]
    assert ds[0]['mask'].unique().tolist() == [0, 3]
    for png in ds.mask_folder.glob('*.png'): png.unlink()                    # a rendering that was stopped
    (ds.mask_folder/'.complete').unlink()
    assert COCODataset(root, 'val', masks=True)[0]['mask'].unique().tolist() == [0, 3]
    assert state(root) == before


NO_COCO = ['', '[]', '{}', '{"images": 3}', '{"images": [], "annotations": [], "categories": []}', '['*100_000]


@pytest.mark.parametrize('text', NO_COCO)
def test_coco_files_that_are_none(tmp_path, text):
    root = coco(tmp_path/'coco', [{}])
    (root/'annotations/instances_val2017.json').write_text(text)
    one_line(lambda: COCODataset(root, 'val'), 'instances_val2017.json')


def test_coco_names_that_lead_out(tmp_path):
    root = coco(tmp_path/'coco', [{}], [dict(file_name='../../x.jpg')])
    one_line(lambda: COCODataset(root, 'val'), 'leads out')


# tables

@pytest.mark.parametrize('name', ['../x.jpg', 'a/../../x.jpg', '..\\x.jpg', '/etc/passwd'])
def test_names_that_lead_out(mine, name):
    source = table(mine.parent, f'image,tags\na.jpg,cat\n{name},dog\n')
    one_line(lambda: TaggedImageDataset(source), 'tags.csv', name.split('/')[-1])


def test_symlink_loops(mine):
    (mine.parent/'loop').symlink_to(mine.parent)
    (mine.parent/'self.jpg').symlink_to(mine.parent/'self.jpg')
    one_line(lambda: TaggedImageDataset(table(mine.parent, 'image,tags\nself.jpg,cat\n')), 'self.jpg')
    classes = mine.parent.parent/'classes'
    picture(classes/'cat/1.jpg')
    (classes/'cat/up').symlink_to(classes)
    assert list(TaggedImageDataset(classes).names) == ['cat/1']


@pytest.mark.parametrize('name', [
    'with space.jpg', 'größe 猫.jpg', 'two\nlines.jpg', 'quo"te.jpg', 'semi;colon, comma.jpg'])
def test_names(mine, name, tmp_path):
    picture(mine.parent/name, 5)
    quoted = '"' + name.replace('"', '""') + '"'
    ds = TaggedImageDataset(table(mine.parent, f'image,tags\na.jpg,cat\n{quoted},dog\n'))
    assert ds[1]['name'] == Path(name).stem and ds.tag_row(1).tolist() == [0, 1]
    (mine.parent/name).unlink()
    one_line(lambda: TaggedImageDataset(mine), ' '.join(name.splitlines()))


@pytest.mark.parametrize('name, text', [
    ('plain.csv', 'image,tags\na.jpg,cat\nb.jpg,dog\nc.jpg,cat;dog\n'),
    ('byte_order_mark.csv', b'\xef\xbb\xbfimage,tags\r\na.jpg,cat\r\nb.jpg,dog\r\nc.jpg,dog; cat\r\n'),
    ('quotes.csv', '"tags","image"\n"cat","a.jpg"\n"dog;dog","b.jpg"\n";cat; dog;","c.jpg"'),
    ('blank_lines.csv', 'image,tags\n\na.jpg,cat\n\nb.jpg,dog\nc.jpg,cat;dog\n\n'),
    ('long_lines.csv', f'image,note,tags\na.jpg,{"x"*10_000},cat\nb.jpg,,dog\nc.jpg,"{"y,"*5000}",cat;dog\n'),
    ('tabs.tsv', 'Image\tTags\na.jpg\tcat\nb.jpg\tdog\nc.jpg\tcat;dog\n')])
def test_forms_of_a_table(mine, name, text):
    ds = TaggedImageDataset(table(mine.parent, text, name))
    rows = [(ds.names[i], ds.tag_row(i).tolist()) for i in range(len(ds))]
    assert rows == [('a', [1, 0]), ('b', [0, 1]), ('c', [1, 1])]


@pytest.mark.parametrize('text, words', [
    ('', 'empty'),
    ('image,tags\n', 'no images'),
    ('a.jpg,cat\nb.jpg,dog\n', 'row 1'),
    ('image\na.jpg\n', 'no column for the tags'),
    ('image,image,tags\na.jpg,b.jpg,cat\n', 'two columns'),
    ('image,tags\na.jpg,cat\nb.jpg,cat,dog\n', 'row 3: 3 fields'),
    ('image,tags\na.jpg,cat\nb.jpg\n', 'row 3: 1 fields'),
    ('image,tags\na.jpg,cat\n,dog\n', 'row 3'),
    ('image,tags\na.jpg,cat\nb.jpg,dog\na.jpg,dog\n', 'row 4'),
    ('image,tags\na.jpg,cat\nb.jpg,;;\n', 'b.jpg'),
    (b'image,tags\na.jpg,c\xe4t\n', 'UTF-8'),
    ('image,tags\na.jpg,cat\n' + 'x'*10_000 + '.jpg,dog\n', 'cannot be opened'),
    (b'\x89PNG\r\n\x1a\n\x00\x00', 'tags.csv'),
    ('image,tags\n"a.jpg,cat\n', 'tags.csv')])
def test_broken_tables(mine, text, words):
    one_line(lambda: TaggedImageDataset(table(mine.parent, text)), 'tags.csv', words)


@pytest.mark.parametrize('name, text', [
    ('x.jsonl', '{"image": "a.jpg", "tags": ["cat"]}\n{"image": '),
    ('x.jsonl', '{"image": "a.jpg", "tags": ["cat"]}\n[1]\n'),
    ('x.jsonl', '{"image": "a.jpg", "tags": {"a": 1}}'),
    ('x.json', '{'),
    ('x.json', '[3]'),
    ('x.json', '{"labels": [1]}'),
    ('x.json', '['*100_000),
    ('x.json', '{"samples": [{"filepath": 3}]}'),
    ('x.parquet', 'PAR1'),
    ('x.tar', 'no tar'),
    ('x.tar', '')])
def test_broken_exports(mine, name, text):
    one_line(lambda: TaggedImageDataset(table(mine.parent, text, name)), name)


def test_a_shard_that_is_cut(mine):
    path = mine.parent/'x.tar'
    with tarfile.open(path, 'w') as file:
        for name in 'abc':
            file.add(mine.parent/f'{name}.jpg', f'{name}.jpg')
            file.add(table(mine.parent, 'cat', f'{name}.txt'), f'{name}.txt')
    assert len(TaggedImageDataset(path)) == 3
    whole = path.read_bytes()
    for tenth in range(1, 8):
        path.write_bytes(whole[:len(whole)*tenth//10])
        try: ds = TaggedImageDataset(path)
        except InputError as error: assert 'x.tar' in str(error) and '\n' not in str(error)
        else: assert all(item['image'].shape == (3, 24, 32) for item in ds)  # cut between two files, both of them whole


# the commands

def test_skip_bad_continues_and_lists(mine, tmp_path):
    table(mine.parent, 'image,tags\na.jpg,cat\nghost.jpg,dog\nb.jpg,dog\nc.jpg,cat,dog,bird\n../x.jpg,cat\n')
    before, run = state(mine.parent), tmp_path/'run'
    options = ['--data', mine, '--preset', 'demo', '--iterations', 2, '--batch-size', 2, '--out', run]
    assert 'row 5' in error_of('dalnet_train', *options)
    code, out, err = command('dalnet_train', *options, '--skip-bad', 'true')
    assert code == 0 and '2 images' in out and '3 left out' in out, (out, err)

    listed = (run/'skipped.txt').read_text()
    assert all(words in listed and words in err for words in ('ghost.jpg', 'row 5', '../x.jpg'))
    assert len(listed.splitlines()) == 3
    code, out, _ = command('dalnet_data', 'tags', mine)
    assert code == 1 and out.count('problem: ') == 3

    labels = tmp_path/'labels'
    code, _, err = command('dalnet_pseudo_labels', run/'iter_000002', '--out', labels)
    assert code == 0 and sorted(path.name for path in labels.glob('*.png')) == ['a.png', 'b.png'], err
    assert state(mine.parent) == before                                      # nothing was written there


def test_nothing_is_written_into_a_voc_folder(shapes, tmp_path):
    data, kept = shutil.copytree(shapes, tmp_path/'data'), tmp_path/'kept'
    before = state(data)
    code, _, err = command('dalnet_train', '--data', data, '--preset', 'demo', '--iterations', 2, '--batch-size', 2,
                           '--out', tmp_path/'run', '--decoded-cache', kept)
    assert code == 0 and len(list(kept.rglob('*.npy'))), err
    command('dalnet_data', 'voc', data)
    command('dalnet_data', 'tags', data, '--val-split', 'val')
    assert state(data) == before


def table_of_shapes(shapes, folder):
    "A table with a column for the split, of the synthetic pictures"
    lines = ['image,tags,split']
    for split in ('train', 'val'):
        ds = VOCDataset(shapes, split)
        for name, row in zip(ds.names, ds.tags):
            tags = ';'.join(cls for cls, tag in zip(ds.classes, row) if tag)
            lines.append(f'{name}.jpg,{tags},{split}')
    return table(folder, '\n'.join(lines) + '\n')


def test_own_images_from_tags_to_scores(shapes, tmp_path):
    "A table with a column for the split, masks in another folder, a prompt of one's own"
    run, masks = tmp_path/'run', tmp_path/'masks'
    own = ['--data', table_of_shapes(shapes, tmp_path), '--image-root', shapes/'JPEGImages', '--preset', 'demo',
           '--iterations', 2, '--batch-size', 2, '--seg-start', 1]
    code, out, err = command('dalnet_train', *own, '--mask-folder', shapes/'SegmentationClass',
                             '--prompts', '{"disc": "round disc"}', '--out', run)
    assert code == 0 and 'mean' in out and '6 images of "val"' in out, (out, err)
    assert 'a photo of round disc' in json.loads((run/'iter_000002/config.json').read_text())['prompts']

    code, out, err = command('dalnet_train', *own, '--out', tmp_path/'other')
    assert code == 0 and 'nothing will be scored' in out, (out, err)
    misspelt = ['--prompts', '{"dsic": "disc"}', '--out', tmp_path/'x']
    assert 'there is no such class' in error_of('dalnet_train', *own, *misspelt)

    predict = ['dalnet_predict', shard(shapes, tmp_path), '--checkpoint', run/'iter_000002', '--out', masks,
               '--crf', 'none']
    code, out, _ = command(*predict)
    assert code == 0 and len(list(masks.glob('*.png'))) == 5, out
    code, out, _ = command(*predict)
    assert '5 done before' in out


def shard(shapes, tmp_path):
    "A .tar of five of the synthetic pictures"
    path = tmp_path/'five.tar'
    if not path.is_file():
        with tarfile.open(path, 'w') as file:
            for image in sorted((shapes/'JPEGImages').iterdir())[:5]: file.add(image, image.name)
    return path


# what fuzzing found, see test_fuzz.py

@pytest.mark.parametrize('name, text, words', [
    ('x.jsonl', '{"image": "a.jpg", "tags": ["cat"], "split": "\\ud800"}', 'row 1: cannot be used'),
    ('x.json', '[{"data": {"image": "a.jpg"}, "annotations": [{"result": [{"type": "choices", "value": '
               '{"choices": [["cat"]]}}]}]}]', 'task 1: tags [["cat"]]'),
    ('x.json', '{"classes": "cat", "labels": {"a": 0}}', 'its classes are not a list'),
    ('x.json', '{"labels": {"a": {"label": ["cat"]}}}', "a tag is ['cat']"),
    ('x.json', '{"labels": {"a": true}}', 'a tag is True')])
def test_tags_that_are_no_names(mine, name, text, words):
    one_line(lambda: TaggedImageDataset(table(mine.parent, text, name)), name, words)


@pytest.mark.parametrize('name, text, classes', [
    ('x.csv', 'image,tags\na.jpg,"{""choices"": 3}"\nb.jpg,"{""choices"": [""cat""]}"\n', ('cat', '{"choices": 3}')),
    ('x.json', '[{"data": {"image": "a.jpg"}, "annotations": [{"result": [{"type": "choices", "value": '
               '{"choices": "cat"}}]}]}]', ('cat',)),
    ('x.json', '{"labels": {"a": {"label": null}, "b": "cat"}}', ('cat',))])
def test_tags_are_never_taken_apart_or_made_up(mine, name, text, classes):
    (mine.parent/'data').mkdir()
    for each in 'ab': shutil.copy(mine.parent/'a.jpg', mine.parent/f'data/{each}.jpg')
    assert TaggedImageDataset(table(mine.parent, text, name), allow_untagged=True).classes == classes


def test_parquet_with_bytes_for_tags(mine):
    tags = pa.array([[b'cat'], [b'dog']], pa.list_(pa.binary()))
    pa.parquet.write_table(pa.table(dict(image=['a.jpg', 'b.jpg'], tags=tags)), mine.parent/'x.parquet')
    assert TaggedImageDataset(mine.parent/'x.parquet').classes == ('cat', 'dog')
    nested = pa.array([[['cat']], [['dog']]], pa.list_(pa.list_(pa.string())))
    pa.parquet.write_table(pa.table(dict(image=['a.jpg', 'b.jpg'], tags=nested)), mine.parent/'x.parquet')
    one_line(lambda: TaggedImageDataset(mine.parent/'x.parquet'), 'x.parquet')
    parts = pa.array(['a.jpg', 'b.jpg']).buffers()
    wrong = pa.Array.from_buffers(pa.string(), 2, [*parts[:2], pa.py_buffer(b'\xff'*10)])
    pa.parquet.write_table(pa.table(dict(image=wrong, tags=['cat', 'dog'])), mine.parent/'x.parquet')
    one_line(lambda: TaggedImageDataset(mine.parent/'x.parquet'), 'x.parquet')


@pytest.mark.parametrize('names, words', [(['/a.jpg'], '"/a.jpg" lies outside'), (['a.jpg', 'a.jpg'], 'listed twice')])
def test_shards_are_named(mine, names, words):
    files = {'jpg': (mine.parent/'a.jpg').read_bytes(), 'json': b'["cat"]'}
    with tarfile.open(mine.parent/'x.tar', 'w') as file:
        for name, (ending, data) in product(names, files.items()):
            info = tarfile.TarInfo(name.replace('jpg', ending))
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    one_line(lambda: TaggedImageDataset(mine.parent/'x.tar'), 'x.tar', words)
    with tarfile.open(mine.parent/'y.tar', 'w') as file:
        file.add(mine.parent/'a.jpg', 'a.jpg')
        file.add(table(mine.parent, '{"tags": {"cat": 1}}', 'a.json'), 'a.json')
    one_line(lambda: TaggedImageDataset(mine.parent/'y.tar'), 'y.tar, a.jpg', 'give a list of names')


@pytest.mark.parametrize('change, words', [
    (dict(area=10**400), 'area'), (dict(iscrowd=10**400), 'iscrowd'),
    (dict(segmentation=dict(size=[24, 32], counts=[-5, 773])), 'a run length'),
    (dict(segmentation=dict(size=[24, 32], counts=[767.5, .5])), 'a run length')])
def test_coco_numbers_that_are_none(tmp_path, change, words):
    one_line(lambda: COCODataset(coco(tmp_path/'coco', [change]), 'val', masks=True), 'instances_val2017.json', words)


@pytest.mark.parametrize('options', [
    dict(categories=((1, dict(a=1)), (90, 'toothbrush'))), dict(images=(dict(file_name='a\0.jpg'),))])
def test_coco_names_that_are_none(tmp_path, options):
    root = coco(tmp_path/'coco', [{}], **options)
    for _ in range(2): one_line(lambda: COCODataset(root, 'val'), 'instances_val2017.json')


@pytest.mark.parametrize('name', ['index.npz', '.complete', '1.png'])
def test_a_damaged_cache_of_coco_is_made_again(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('DALNET_CACHE', str(tmp_path/'cache'))
    root = coco(tmp_path/'coco', [{}])
    before = COCODataset(root, 'val', masks=True)[0]
    path = next((tmp_path/'cache').rglob(name))
    whole = path.read_bytes()
    for at in range(0, len(whole), max(1, len(whole)//40)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1:])
        after = COCODataset(root, 'val', masks=True)[0]
        assert after['mask'].equal(before['mask']) and after['tags'].equal(before['tags']), (name, at)
    capsys.readouterr()


def test_a_flipped_bit_of_a_words_vector_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr('dalnet.text._clip_vectors', lambda prompts, model, weights: torch.eye(len(prompts), 8))
    before = encode_text(['cat', 'dog'], cache=tmp_path)
    assert len(list(tmp_path.glob('*.npy'))) == 3
    for path in tmp_path.glob('*.npy'):
        data = bytearray(path.read_bytes())
        data[-8] ^= 64
        path.write_bytes(data)
    after = encode_text(['cat', 'dog'], cache=tmp_path)
    assert after.fg.equal(before.fg) and after.bg.equal(before.bg)


def test_regions_with_transparency(tmp_path):
    Image.merge('LA', [Image.new('L', (8, 8), 5), Image.new('L', (8, 8), 255)]).save(tmp_path/'a.png')
    assert read_regions(tmp_path, 'a', (8, 8)).unique().tolist() == [5]


@pytest.mark.parametrize('packed', [True, False])
def test_a_damaged_mask_of_sbd_is_one_line_or_the_mask(packed, tmp_path):
    "SciPy's compiled reader ends the process for some of these; only packed files have a checksum"
    mask = np.kron(np.eye(3, dtype=np.uint8), np.ones((4, 5), np.uint8))
    savemat(tmp_path/'a.mat', dict(GTcls=dict(Segmentation=mask)), do_compression=packed)
    whole, rng = (tmp_path/'a.mat').read_bytes(), np.random.default_rng(0)
    for _ in range(2000):
        data = bytearray(whole)
        data[rng.integers(128, len(data))] = rng.integers(256)
        (tmp_path/'a.mat').write_bytes(data)
        try: found = _load_sbd(tmp_path/'a.mat', 1, mask.shape)
        except InputError as error: assert 'a.mat' in str(error)
        else: assert not packed or (found.numpy() == mask).all()
