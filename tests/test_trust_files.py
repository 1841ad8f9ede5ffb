"Files that nobody should trust: results stay in their folder, what is read is checked, nothing disappears unseen"
import io, json, os, tarfile
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from dalnet.build import build_model, build_text
from dalnet.checkpoint import Checkpoint
from dalnet.config import PRESETS
from dalnet.core import InputError
from dalnet.inference import Predictor
from dalnet.label_files import predict_files
from dalnet.shapes import SHAPE_CLASSES
from test_bad_data import one_line, picture, state, table


@pytest.fixture(scope='module')
def checkpoint(shapes, tmp_path_factory):
    "A small untrained network; what it sees does not matter here"
    torch.manual_seed(0)
    config = replace(PRESETS['demo'], data=str(shapes), seg_start=1, test_scales=(1.,), long_side=96,
                     encoder_options=dict(depth=1, patch_size=16, img_size=96))
    text = build_text(config, SHAPE_CLASSES)
    return Checkpoint.save(tmp_path_factory.mktemp('run')/'iter_000002', build_model(config, text), config, text, 2)


@pytest.fixture(scope='module')
def predictor(checkpoint): return Predictor(checkpoint, 'cpu', flip=False)


def jpeg(seed=0, size=(32, 24), **options):
    "The bytes of a JPEG of noise"
    file, pixels = io.BytesIO(), np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file, 'JPEG', **options)
    return file.getvalue()


def archive(path, members):
    "Write (name, bytes) into a .tar, whatever the names"
    with tarfile.open(path, 'w') as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def names(folder): return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


RESULTS = ['.json', '.png', '_overlay.jpg']


# where results lie

def test_names_in_an_archive_lead_nowhere(predictor, tmp_path):
    away, out = tmp_path/'away', tmp_path/'deep/er/out'
    away.mkdir(), out.mkdir(parents=True)
    (away/'notes.png').write_text('mine')
    (out/'link').symlink_to(away)
    hostile = ['../../x.jpg', f'{away}/notes.jpg', 'link/y.jpg', 'a/../../z.jpg', 'ü'*125 + '.jpg']
    shard = archive(tmp_path/'shard.tar', [(name, jpeg(i)) for i, name in enumerate([*hostile, './good.jpg'])])
    before = state(away)
    done, _, failures = predict_files(predictor, [shard], out)
    assert (done, len(failures)) == (1, 5) and state(away) == before
    assert all('leads out of the folder' in line for line in failures[:4]) and 'shorten it' in failures[4]
    assert names(tmp_path) == ['away/notes.png', *(f'deep/er/out/good{ending}' for ending in RESULTS), 'shard.tar']
