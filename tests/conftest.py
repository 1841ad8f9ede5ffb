"Shared fixtures: a synthetic dataset, and the real one where it is at hand"
import os
import tempfile
from pathlib import Path
os.environ.setdefault('HF_HUB_OFFLINE', '1')  # no test asks a hub
os.environ['DALNET_CACHE'] = tempfile.mkdtemp(prefix='dalnet_cache_')  # nor leaves anything in the user's cache
import pytest
from dalnet.shapes import make_shapes


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    "24 synthetic pictures in the devkit's layout"
    return make_shapes(tmp_path_factory.mktemp('data')/'shapes', n=24, size=96)


@pytest.fixture(scope='session')
def voc():
    "The real VOC subset, or a skip that says why"
    folder = Path(os.environ.get('DALNET_DATA', Path(__file__).parents[2]/'shared/data'))/'VOCdevkit/VOC2012'
    if not folder.is_dir(): pytest.skip('no VOC 2012: set DALNET_DATA to a folder with VOCdevkit/VOC2012')
    return folder.resolve()
