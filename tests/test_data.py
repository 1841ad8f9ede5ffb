"Datasets as their users have them, from the command line and in worker processes"
import json, pickle
import numpy as np
import pytest, torch
from dalnet.data import open_dataset
from dalnet.tagged import TaggedImageDataset
from dalnet.transforms import TrainTransform
from dalnet.bench import opening_cost, random_table
from dalnet.training import SampleStream
from test_bad_data import coco, picture, shard, state, table
from test_cli import command


def everything(dataset, context):
    loader = torch.utils.data.DataLoader(SampleStream(dataset, 0), 2, sampler=range(8), num_workers=2 if context else 0, multiprocessing_context=context)
    return [(b['name'], b['image'], b['tags']) for b in loader]


@pytest.mark.parametrize('kind', ['table', 'shard'])
def test_worker_processes_give_the_same(kind, shapes, tmp_path):
    "Forked or started afresh, which maps the index again"
    if kind == 'shard': source, options = shard(shapes, tmp_path), dict(allow_untagged=True, classes=('a', 'b'))
    else: source, options = table(tmp_path, 'image,tags\n' + ''.join(f'{o.name},{"a" if i % 2 else "b;a"}\n' for i, o in enumerate(sorted((shapes/'JPEGImages').iterdir())[:6]))), dict(image_root=shapes/'JPEGImages')
    ds = TaggedImageDataset(source, transform=TrainTransform(32), **options)
    want = everything(ds, None)
    for context in ('fork', 'spawn'):
        for a, b in zip(want, everything(ds, context)): assert a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
    assert len(pickle.dumps(ds)) < 20_000


def test_half_a_million_rows(tmp_path):
    first, again = opening_cost(random_table(tmp_path/'big.csv', 500_000))
    assert first['images'] == again['images'] == 500_000
    assert again['held_gib'] - again['imports_gib'] < .3 and again['own_gib'] < 1, (first, again)


def test_coco_from_the_command_line(tmp_path):
    boxes = [dict(image_id=i, category_id=c, segmentation=[[x, 2, x + 12, 2, x + 12, 20, x, 20]], area=12*18) for i, c, x in ((1, 1, 2), (2, 90, 15), (3, 1, 3), (3, 90, 17), (4, 90, 2))]
    root = coco(tmp_path/'coco', boxes, ({},)*5)
    (root/'annotations/instances_train2017.json').write_bytes((root/'annotations/instances_val2017.json').read_bytes())
    for o in (root/'val2017').iterdir(): picture(root/f'train2017/COCO_train2017_{o.name}', 3)              # the other style of names
    before = state(root)
    code, out, _ = command('dalnet_data', 'coco', root, '--render', 'val')
    assert code == 0 and '5 pictures, 1 without an object' in out and '4 masks rendered' in out, out
    code, out, err = command('dalnet_train', '--data', root, '--preset', 'demo', '--iterations', 2, '--batch-size', 2, '--seg-start', 1, '--local-crops', 2, '--local-size', 32, '--augment', 'dino', '--out', tmp_path/'run')
    assert code == 0 and '4 images of "train2017"' in out and '4 images of "val2017"' in out, (out, err)
    code, out, err = command('dalnet_eval', tmp_path/'run/iter_000002', '--scales', '1', '--crf', 'none', '--out', tmp_path/'again.json')
    a, b = json.loads((tmp_path/'again.json').read_text()), json.loads((tmp_path/'run/scores.json').read_text())
    assert code == 0 and a['cam'] == b['cam'] and a['seg'] == b['seg'], err
    code, _, err = command('dalnet_pseudo_labels', tmp_path/'run/iter_000002', '--out', tmp_path/'labels', '--processes', 2)
    assert code == 0 and len(list((tmp_path/'labels').glob('*.png'))) == 4, err
    assert state(root) == before


def test_real_coco(voc):
    "80 + 80 images of COCO 2017, where they are at hand"
    root = voc.parents[1]/'coco-subset'
    if not root.is_dir(): pytest.skip('no COCO subset beside the VOC folder')
    ds = open_dataset(root, part='val', masks=True)
    assert (len(ds), len(ds.classes), ds.split) == (80, 80, 'val2017') and len(open_dataset(root)) == 80
    for i in range(0, 80, 7):
        item = ds[i]
        labels = set(item['mask'].unique().tolist()) - {0, 255}
        assert item['mask'].shape == item['image'].shape[1:] and labels <= {k + 1 for k in np.flatnonzero(ds.tags[i])}
