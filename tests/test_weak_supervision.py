"Training opens no mask file: every file that a training process opens is recorded by Python itself"
import subprocess, sys
import torch
from dalnet.core import InputError
from dalnet.shapes import make_shapes
from dalnet.voc import VOCDataset

SPY = '''
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event in ('open', 'os.listdir', 'os.scandir') else None)
from dataclasses import replace
from dalnet.config import PRESETS
from dalnet.training import train
train(replace(PRESETS['demo'], data={data!r}, out={out!r}, iterations=2, batch_size=2, save_every=2))
assert any('JPEGImages' in o for o in opened) and any('Annotations' in o for o in opened), 'the spy sees nothing'
touched = [o for o in opened if 'SegmentationClass' in o]
assert not touched, touched
'''


def test_training_touches_no_mask(shapes, tmp_path):
    done = subprocess.run([sys.executable, '-c', SPY.format(data=str(shapes), out=str(tmp_path/'run'))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_masks_make_no_difference_to_training_items(tmp_path):
    root = make_shapes(tmp_path/'a', n=6, size=64)
    before = [o['tags'] for o in VOCDataset(root, 'train')]
    for png in (root/'SegmentationClass').iterdir(): png.write_bytes(b'')
    assert all(torch.equal(a, o['tags']) for a, o in zip(before, VOCDataset(root, 'train')))
    import pytest, shutil
    shutil.rmtree(root/'Annotations'); shutil.rmtree(root/'ImageSets/Main')
    with pytest.raises(InputError, match='never come from masks'): VOCDataset(root, 'train')
