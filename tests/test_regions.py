"Regions made by another tool, from a folder of PNGs to a term of the loss"
import shutil
from dataclasses import replace
import pytest
from dalnet.build import training_data
from dalnet.config import PRESETS
from dalnet.training import train
from dalnet.watch import read_log
from test_bad_data import one_line


@pytest.fixture
def config(shapes, tmp_path):
    "Settings of a short run, with the true masks as regions"
    shutil.copytree(shapes/'SegmentationClass', tmp_path/'regions')
    return replace(PRESETS['demo'], data=str(shapes), out=str(tmp_path/'run'), iterations=4, batch_size=4, seg_start=2,
                   warmup=1, save_every=4, log_every=1, weight_region=1., region_folder=str(tmp_path/'regions'))


def test_regions_are_a_term_once_the_segmentation_learns(config):
    train(config)
    lines = read_log(config.out)
    assert ['region' in line for line in lines] == [False, False, True, True]
    assert all(0 < line['region'] < 1 for line in lines[2:])


def test_regions_weigh_the_same_in_parts(config):
    whole, parts = replace(config, out=config.out + '1'), replace(config, out=config.out + '2', accumulate=2)
    for each in (whole, parts): train(each)
    first, second = (read_log(each.out)[2]['region'] for each in (whole, parts))
    assert abs(first - second) < .02                                 # means over each part's pixels


def test_missing_regions_are_found_before_training(config, tmp_path):
    (tmp_path/f'regions/{training_data(config).names[3]}.png').unlink()
    one_line(lambda: train(config), 'setting region_folder', '.png is missing', 'weight_region')


def test_settings_need_each_other(config):
    one_line(lambda: replace(config, region_folder=''), 'region_folder', 'weight_region')
    one_line(lambda: replace(config, augment='dino'), 'augment', 'weight_region')
