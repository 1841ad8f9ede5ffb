"Training opens no mask file: every file that a training process opens is recorded by Python itself"
import shutil, subprocess, sys
import pytest
import torch
from dalnet.core import InputError
from dalnet.shapes import make_shapes
from dalnet.voc import VOCDataset

SPY = '''
import sys
opened = []
def spy(event, args):
    if event in ('open', 'os.listdir', 'os.scandir'): opened.append(str(args[0]))
sys.addaudithook(spy)
from dataclasses import replace
from dalnet.config import PRESETS
from dalnet.training import train
train(replace(PRESETS['demo'], data={data!r}, out={out!r}, iterations=2, batch_size=2, save_every=2))
for folder in ('JPEGImages', 'Annotations'):
    assert any(folder in path for path in opened), 'the spy sees nothing'
touched = [path for path in opened if 'SegmentationClass' in path]
assert not touched, touched
'''


def test_training_touches_no_mask(shapes, tmp_path):
    spy = SPY.format(data=str(shapes), out=str(tmp_path/'run'))
    done = subprocess.run([sys.executable, '-c', spy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_masks_make_no_difference_to_training_items(tmp_path):
    root = make_shapes(tmp_path/'a', n=6, size=64)
    before = [item['tags'] for item in VOCDataset(root, 'train')]
    for png in (root/'SegmentationClass').iterdir(): png.write_bytes(b'')
    after = [item['tags'] for item in VOCDataset(root, 'train')]
    assert len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after))
    shutil.rmtree(root/'Annotations')
    shutil.rmtree(root/'ImageSets/Main')
    with pytest.raises(InputError, match='never come from masks'): VOCDataset(root, 'train')
