"Datasets as their users have them, from the command line and in worker processes"
import json, os, pickle, subprocess, sys
import numpy as np
import pytest, torch
from dalnet.bench_data import opening_cost, random_table
from dalnet.data import open_dataset
from dalnet.tagged import TaggedImageDataset
from dalnet.batches import SampleStream
from dalnet.transforms import TrainTransform
from test_bad_data import coco, picture, shard, state, table
from test_cli import command


def everything(dataset, context):
    "Names, images and tags of eight items, by two worker processes if a context is given"
    loader = torch.utils.data.DataLoader(
        SampleStream(dataset, 0), 2, sampler=range(8), num_workers=2 if context else 0, multiprocessing_context=context)
    return [(batch['name'], batch['image'], batch['tags']) for batch in loader]


@pytest.mark.parametrize('kind', ['table', 'shard'])
def test_worker_processes_give_the_same(kind, shapes, tmp_path):
    "Forked or started afresh, which maps the index again"
    if kind == 'shard':
        source, options = shard(shapes, tmp_path), dict(allow_untagged=True, classes=('a', 'b'))
    else:
        paths = sorted((shapes/'JPEGImages').iterdir())[:6]
        rows = [f'{path.name},{"a" if i % 2 else "b;a"}\n' for i, path in enumerate(paths)]
        source, options = table(tmp_path, 'image,tags\n' + ''.join(rows)), dict(image_root=shapes/'JPEGImages')
    ds = TaggedImageDataset(source, transform=TrainTransform(32), **options)
    alone = everything(ds, None)
    for context in ('fork', 'spawn'):
        for first, again in zip(alone, everything(ds, context), strict=True):
            assert first[0] == again[0]
            assert torch.equal(first[1], again[1]) and torch.equal(first[2], again[2])
    assert len(pickle.dumps(ds)) < 20_000


def test_half_a_million_rows(tmp_path):
    first, again = opening_cost(random_table(tmp_path/'big.csv', 500_000))
    assert first['images'] == again['images'] == 500_000
    assert again['held_gib'] - again['imports_gib'] < .3 and again['own_gib'] < 1, (first, again)


def box(image, category, x):
    "An annotation of COCO: a rectangle of 12 x 18 pixels"
    corners = [x, 2, x + 12, 2, x + 12, 20, x, 20]
    return dict(image_id=image, category_id=category, segmentation=[corners], area=12*18)


def test_coco_from_the_command_line(tmp_path):
    "Look, train, score and label; nothing is written into COCO's folder"
    boxes = [box(1, 1, 2), box(2, 90, 15), box(3, 1, 3), box(3, 90, 17), box(4, 90, 2)]
    root = coco(tmp_path/'coco', boxes, ({},)*5)
    annotations = (root/'annotations/instances_val2017.json').read_bytes()
    (root/'annotations/instances_train2017.json').write_bytes(annotations)
    for path in (root/'val2017').iterdir():                                  # the other style of names
        picture(root/f'train2017/COCO_train2017_{path.name}', 3)
    before, run = state(root), tmp_path/'run'
    code, out, _ = command('dalnet_data', 'coco', root, '--render', 'val')
    assert code == 0 and '5 pictures, 1 without an object' in out and '4 masks rendered' in out, out

    code, out, err = command(
        'dalnet_train', '--data', root, '--preset', 'demo', '--iterations', 2, '--batch-size', 2, '--seg-start', 1,
        '--local-crops', 2, '--local-size', 32, '--augment', 'dino', '--out', run)
    assert code == 0 and '4 images of "train2017"' in out and '4 images of "val2017"' in out, (out, err)

    scores = tmp_path/'again.json'
    code, out, err = command('dalnet_eval', run/'iter_000002', '--scales', '1', '--crf', 'none', '--out', scores)
    again, first = json.loads(scores.read_text()), json.loads((run/'scores.json').read_text())
    assert code == 0 and again['cam'] == first['cam'] and again['seg'] == first['seg'], err

    labels = tmp_path/'labels'
    code, _, err = command('dalnet_pseudo_labels', run/'iter_000002', '--out', labels, '--processes', 2)
    assert code == 0 and len(list(labels.glob('*.png'))) == 4, err
    assert state(root) == before


def test_without_pycocotools(shapes, tmp_path):
    "Everything but COCO works, and COCO says in one line what it needs"
    root = coco(tmp_path/'coco', [{}])
    script = f'''
import sys
sys.modules['pycocotools'] = None  # as if it were not installed
import dalnet.cli, dalnet.coco, dalnet.data
print(len(dalnet.data.open_dataset({str(shapes)!r}, 'val')), 'images')
try: dalnet.data.open_dataset({str(root)!r}, part='val')
except dalnet.core.InputError as error: print(error)
'''
    environment = os.environ | dict(DALNET_CACHE=str(tmp_path/'cache'))
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, env=environment)
    lines = ['6 images', 'COCO needs pycocotools: not installed; pip install "dalnet[coco]"']
    assert done.stdout.splitlines() == lines, done.stderr


@pytest.mark.parametrize('module', ['dalnet.core', 'dalnet.config'])
def test_settings_are_read_without_pytorch(module):
    script = f'import sys, {module}; print([name for name in ("torch", "numpy", "scipy") if name in sys.modules])'
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stdout + done.stderr


def test_real_coco(voc):
    "80 + 80 images of COCO 2017, where they are at hand"
    root = voc.parents[1]/'coco-subset'
    if not root.is_dir(): pytest.skip('no COCO subset beside the VOC folder')
    ds = open_dataset(root, part='val', masks=True)
    assert (len(ds), len(ds.classes), ds.split) == (80, 80, 'val2017') and len(open_dataset(root)) == 80
    for i in range(0, 80, 7):
        item = ds[i]
        labels = set(item['mask'].unique().tolist()) - {0, 255}
        assert item['mask'].shape == item['image'].shape[1:]
        assert labels <= {label + 1 for label in np.flatnonzero(ds.tags[i])}
