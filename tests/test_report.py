"The page of errors: one file that needs nothing else, for any dataset, and one line for each mistake"
import html
import re
import shutil
import subprocess
import sys
from dataclasses import replace
import pytest
from dalnet.build import training_data
from dalnet.config import PRESETS
from dalnet.training import train

SMALL = dict(iterations=2, warmup=1, batch_size=2, save_every=2, seg_start=1,
             encoder_options=dict(depth=2, patch_size=16, img_size=96))


@pytest.fixture(scope='module')
def checkpoint(shapes, tmp_path_factory):
    "A small network with segmentation, hardly trained"
    config = replace(PRESETS['demo'], data=str(shapes), out=str(tmp_path_factory.mktemp('run')), **SMALL)
    return train(config, training_data(config))


def report(*args):
    "Run the command in a process of its own -> (exit code, stdout, stderr)"
    code = 'import sys; from dalnet.run_report import dalnet_report; dalnet_report(sys.argv[1:])'
    done = subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def page_of(out, *args):
    "The page that the command writes"
    code, said, err = report(*args, '--out', out)
    assert code == 0 and f'written: {out}' in said, said + err
    return out.read_text(encoding='utf-8')


def is_alone(page):
    "Whether a page asks for no other file"
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    asks = re.search('https?:|<script|@import|url\\(', page)
    return all(source.startswith('data:') for source in sources) and not asks


def test_cams_on_a_page(checkpoint, tmp_path):
    page = page_of(tmp_path/'cams.html', checkpoint, '--what', 'cams', '--cam-scales', '1', '--worst', '3')
    assert is_alone(page) and page.count('<figure>') == 3 and page.count('<img') == 12
    for name in ('background', 'cross', 'disc', 'ring', 'square', 'star', 'triangle'): assert f'>{name}<' in page
    assert '<h2>Threshold</h2>' in page and f'fixed, {PRESETS["demo"].cam_threshold}' in page and 'oracle, ' in page
    assert 'label-free' not in page
    assert not re.search(r'\bnan\b', page, re.IGNORECASE)


def test_segmentation_on_a_page_in_the_checkpoint(checkpoint):
    code, said, err = report(checkpoint, '--crf', 'none', '--scales', '1', '--limit', '2')
    assert code == 0 and 'segmentation, several scales, 2 images' in said, said + err
    page = (checkpoint/'report_val.html').read_text(encoding='utf-8')
    assert is_alone(page) and page.count('<figure>') == 2                # fewer images than --worst
    assert '<h2>Threshold</h2>' not in page and 'segmentation, one scale, tags known' in page


def test_threshold_chosen_without_masks(checkpoint, tmp_path):
    page = page_of(tmp_path/'free.html', checkpoint, '--what', 'cams', '--cam-scales', '1', '--limit', '1',
                   '--label-free', '--worst', '0')
    assert 'label-free, ' in page and page.count('<img') == 0


def test_names_are_text(checkpoint, tmp_path):
    out = tmp_path/'a <b> & c.html'
    page = page_of(out, checkpoint, '--what', 'cams', '--cam-scales', '1', '--limit', '1')
    assert 'a <b>' not in page and html.escape('a <b> & c.html') in page  # in the command


def absent_checkpoint(checkpoint, data): return [checkpoint.parent/'iter_000009'], 'config.json: file not found'
def absent_masks(checkpoint, data):
    shutil.rmtree(data/'SegmentationClass')
    return [checkpoint, '--data', data], 'SegmentationClass'
def absent_folder(checkpoint, data): return [checkpoint, '--out', data/'no/report.html'], 'folder not found'
def negative_limit(checkpoint, data): return [checkpoint, '--limit', '-1'], 'limit must be 0 or more'
def high_threshold(checkpoint, data): return [checkpoint, '--cam-threshold', '1'], 'cam-threshold must be at least 0'
def other_classes(checkpoint, data):
    (data/'classes.txt').write_text('\n'.join(['cross', 'disc', 'ring', 'square', 'star', 'cone']))
    for path in (data/'ImageSets/Main').glob('triangle_*'):
        path.rename(path.with_name(path.name.replace('triangle', 'cone')))
    return [checkpoint, '--data', data, '--tags', 'lists'], "('cone', 'triangle')"


@pytest.mark.parametrize('spoil', [
    absent_checkpoint, absent_masks, absent_folder, negative_limit, high_threshold, other_classes])
def test_bad_input_is_one_line(checkpoint, shapes, tmp_path, spoil):
    args, words = spoil(checkpoint, shutil.copytree(shapes, tmp_path/'data'))
    code, said, err = report(*args, '--crf', 'none')
    lines = [line for line in err.splitlines() if line.startswith('error: ')]
    assert code == 2 and len(lines) == 1 and words in lines[0] and 'Traceback' not in err, err
    assert not list(tmp_path.rglob('*.html'))
