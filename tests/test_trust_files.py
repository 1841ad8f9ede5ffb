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
from dalnet.images import IMAGE_SUFFIXES, as_image, check_image, load_image, load_mask, open_image, upright_size
from dalnet.label_files import predict_files, pseudo_label_files
from dalnet.shapes import SHAPE_CLASSES
from dalnet.transforms import EvalTransform
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


# pictures

def test_postscript_starts_no_program(tmp_path, monkeypatch):
    path, started = tmp_path/'a.jpg', []
    path.write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n')
    monkeypatch.setattr('subprocess.check_call', lambda *args, **options: started.append(args))
    for read in (load_image, check_image, as_image, lambda path: load_mask(path, 3)): one_line(lambda: read(path), 'a.jpg')
    assert not started and '.eps' not in IMAGE_SUFFIXES


@pytest.mark.parametrize('ending, options', [
    ('jpg', {}), ('png', {}), ('webp', {}), ('tif', {}), ('tif', dict(compression='tiff_lzw')),
    ('tif', dict(compression='jpeg'))])
@pytest.mark.parametrize('number', range(1, 9))
def test_turned_pictures(tmp_path, ending, options, number):
    pixels = np.kron(np.array([[250, 0], [80, 80], [80, 160]], np.uint8), np.ones((16, 16), np.uint8))
    upright, exif = Image.fromarray(pixels).convert('RGB'), Image.Exif()     # 32 wide, 48 high
    exif[0x0112] = number
    turn = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}.get(number, [])     # undoes what a viewer will do
    stored = upright.transpose(Image.Transpose(turn[0])) if turn else upright
    stored.save(tmp_path/f'a.{ending}', exif=exif, **options)
    with open_image(tmp_path/f'a.{ending}') as image:
        assert upright_size(image) == (48, 32)
        assert EvalTransform()(image)['image'].shape == (3, 48, 32)
    shown = np.asarray(load_image(tmp_path/f'a.{ending}'))[..., 0].astype(int)
    assert abs(shown - pixels).max() < 12


def test_pseudo_labels_of_turned_tiffs(checkpoint, tmp_path):
    exif, rows = Image.Exif(), ['image,tags']
    for number in (1, 6):
        exif[0x0112] = number
        Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(tmp_path/f'{number}.tif', exif=exif)
        rows.append(f'{number}.tif,disc')
    done = pseudo_label_files(checkpoint, tmp_path/'out', table(tmp_path, '\n'.join(rows)), scales=(1.,))
    assert done == (2, 0, [])
    assert [Image.open(tmp_path/f'out/{number}.png').size for number in (1, 6)] == [(64, 32), (32, 64)]
