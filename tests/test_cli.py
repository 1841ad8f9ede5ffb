"The console scripts as a user meets them: exit codes, one line for each mistake, no traceback"
import io, json, shutil, subprocess, sys, tarfile
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from dalnet.text import encode_text

BIN = Path(sys.executable).parent


def command(name, *args, cwd=None, env=None):
    "Run a console script -> (exit code, stdout, stderr)"
    words = [str(BIN/name), *map(str, args)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=env, timeout=600)
    return done.returncode, done.stdout, done.stderr


def error_of(*args, cwd=None):
    "The one line of a command that must fail with exit code 2"
    code, out, err = command(*args, cwd=cwd)
    assert code == 2, (code, out, err)
    assert 'Traceback' not in err
    lines = [line for line in err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1, err
    return lines[0]


@pytest.fixture
def data(shapes, tmp_path): return shutil.copytree(shapes, tmp_path/'data')


def first(data): return (data/'ImageSets/Segmentation/train.txt').read_text().split()[0]


def absent_folder(data): return ['--data', data.parent/'nowhere'], 'nowhere'
def absent_image(data):
    with (data/'ImageSets/Segmentation/train.txt').open('a') as file: file.write('ghost\n')
    return [], 'ghost'
def unknown_class(data):
    path = data/f'Annotations/{first(data)}.xml'
    path.write_text('<annotation><object><name>unicorn</name></object></annotation>')
    return [], 'unicorn'
def no_tag(data):
    (data/f'Annotations/{first(data)}.xml').write_text('<annotation></annotation>')
    return [], first(data)
def truncated_jpeg(data):
    path = data/f'JPEGImages/{first(data)}.jpg'
    path.write_bytes(path.read_bytes()[:1500])
    return [], first(data)
def text_of_other_classes(data):
    encode_text(['disc', 'ring'], model='hash').save(data/'two.npz')
    return ['--text', data/'two.npz'], 'two.npz'
def text_of_two_widths(data):
    names = np.array((data/'classes.txt').read_text().split())
    np.savez(data/'odd.npz', names=names, prompts=names, fg=np.ones((6, 8)), bg=np.ones((1, 9)))
    return ['--text', data/'odd.npz'], 'odd.npz'
def weights_of_another_architecture(data):
    import timm, torch
    torch.save(timm.create_model('resnet18').state_dict(), data/'resnet.pth')
    return ['--pretrained', data/'resnet.pth'], 'resnet.pth'
def no_tag_source(data):
    shutil.rmtree(data/'Annotations'); shutil.rmtree(data/'ImageSets/Main')
    return [], 'tags never come from masks'


@pytest.mark.parametrize('spoil', [
    absent_folder, absent_image, unknown_class, no_tag, truncated_jpeg, text_of_other_classes, text_of_two_widths,
    weights_of_another_architecture, no_tag_source])
def test_bad_input_is_one_line_before_training(data, tmp_path, spoil):
    args, words = spoil(data)
    line = error_of('dalnet_train', '--preset', 'demo', '--data', data, '--out', tmp_path/'run', *args)
    assert words in line
    assert not list(tmp_path.glob('run/iter_*')) and not (tmp_path/'run/log.jsonl').exists()


def read_scores(path):
    "Scores without the time they took; strict JSON"
    def no_constant(name): raise ValueError(name)
    scores = json.loads(path.read_text(), parse_constant=no_constant)
    return {key: value for key, value in scores.items() if key != 'seconds'}


def set_depth(checkpoint, depth):
    "Change the number of blocks that a checkpoint says its encoder has"
    about = json.loads((checkpoint/'config.json').read_text())
    about['config']['encoder_options']['depth'] = depth
    about.pop('fingerprint', None)  # which would give it away
    (checkpoint/'config.json').write_text(json.dumps(about))


def test_train_then_eval_then_mismatched_checkpoint(data, tmp_path):
    small = ['--iterations', 2, '--batch-size', 2, '--save-every', 2, '--seg-start', 1,
             '--encoder-options', '{"depth": 2, "patch_size": 16, "img_size": 96}']
    code, out, err = command('dalnet_train', '--preset', 'demo', '--data', data, '--out', tmp_path/'run', *small)
    assert code == 0, err
    scores = read_scores(tmp_path/'run/scores.json')
    assert 'multi, tags' in out and scores['cam']['names'][0] == 'background'
    assert set(scores['seg']['iou']) == {'single', 'multi', 'single, tags', 'multi, tags'}
    checkpoint = tmp_path/'run/iter_000002'
    code, out, err = command('dalnet_eval', checkpoint, '--crf', 'none', '--out', tmp_path/'again.json')
    assert code == 0 and read_scores(tmp_path/'again.json') == scores
    set_depth(checkpoint, 3)
    assert 'another architecture' in error_of('dalnet_eval', checkpoint)
    (data/'classes.txt').write_text('\n'.join(['cross', 'disc', 'ring', 'square', 'star', 'cone']))
    for path in (data/'ImageSets/Main').glob('triangle_*'):
        path.rename(path.with_name(path.name.replace('triangle', 'cone')))
    set_depth(checkpoint, 2)
    assert "('cone', 'triangle')" in error_of('dalnet_eval', checkpoint, '--tags', 'lists')


def read_log(out): return [json.loads(line) for line in (out/'log.jsonl').read_text().splitlines()]


def test_untagged_images_are_accepted_when_allowed(data, tmp_path):
    no_tag(data)
    code, out, err = command(
        'dalnet_train', '--preset', 'demo', '--data', data, '--out', tmp_path/'run', '--allow-untagged', 'true',
        '--iterations', 12, '--batch-size', 2, '--eval-split', 'none')
    assert code == 0, err
    assert all(np.isfinite(value) for line in read_log(tmp_path/'run') for value in line.values())


def test_unknown_option_names_it(data):
    code, _, err = command('dalnet_train', '--data', data, '--bacth-size', 4)
    assert code == 2 and 'bacth' in err and 'Traceback' not in err


def test_voc_mini_makes_steps_on_real_images(voc, tmp_path):
    text = voc.parents[1]/'text/voc_clip_vitb16.npz'
    code, out, err = command(
        'dalnet_train', '--data', voc, '--preset', 'voc_mini', '--text', text, '--out', tmp_path/'run',
        '--iterations', 3, '--batch-size', 2, '--warmup', 1, '--log-every', 1, '--seg-start', 2, '--show-at', '3',
        '--eval-split', 'none')
    assert code == 0, err
    log = read_log(tmp_path/'run')
    names = {'iteration', 'lr', 'seconds', 'waiting', 'cls', 'inter', 'im', 'ex', 'ptc', 'total', 'grad',
             'text_cos', 'text_bg', 'text_rank'}
    assert len(log) == 3 and set(log[0]) == names
    assert set(log[2]) == names | {'seg', 'reg'}
    assert all(np.isfinite(value) for line in log for value in line.values())
    assert (tmp_path/'run/panels/iter_000003.png').is_file()


@pytest.fixture(scope='module')
def checkpoint(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp('run')
    code, _, err = command(
        'dalnet_train', '--preset', 'demo', '--data', shapes, '--out', out,
        '--iterations', 3, '--batch-size', 4, '--seg-start', 1, '--eval-split', 'none')
    assert code == 0, err
    return out/'iter_000003'


def stamps(folder): return {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_predict_reports_a_bad_image_at_the_end_and_skips_what_is_done(checkpoint, shapes, tmp_path):
    photos, masks = shutil.copytree(shapes/'JPEGImages', tmp_path/'photos'), tmp_path/'masks'
    names = sorted(path.stem for path in photos.iterdir())
    (photos/f'{names[0]}.jpg').write_bytes(b'no image')
    before = stamps(photos)
    args = '--checkpoint', checkpoint, '--out', masks, '--scales', '1', '--crf', 'none'
    code, out, err = command('dalnet_predict', photos, *args)
    assert code == 1 and 'Traceback' not in err
    failed = [line for line in err.splitlines() if line.startswith('failed: ')]
    assert failed == [line for line in err.splitlines() if names[0] in line] and f'{len(names) - 1} labelled' in out
    assert sorted(path.stem for path in masks.glob('*.json')) == names[1:]
    written = stamps(masks)
    code, out, _ = command('dalnet_predict', photos, *args)
    assert code == 1 and f'0 labelled, {len(names) - 1} done before, 1 failed' in out
    assert written == stamps(masks) and before == stamps(photos)
    assert 'nowhere' in error_of('dalnet_predict', tmp_path/'nowhere', *args)


def pixels(png): return np.asarray(Image.open(io.BytesIO(png)))


def test_pseudo_labels_are_the_same_from_one_process_and_two(checkpoint, tmp_path):
    runs = {}
    for n in (1, 2):
        out = tmp_path/f'{n}'
        code, _, err = command('dalnet_pseudo_labels', checkpoint, '--out', out, '--scales', '1', '--processes', n)
        assert code == 0, err
        runs[n] = {path.name: path.read_bytes() for path in out.glob('*.png')}
    assert len(runs[1]) > 10 and runs[1].keys() == runs[2].keys()
    same = [np.mean(pixels(png) == pixels(runs[2][name])) for name, png in runs[1].items()]
    assert min(same) > .999  # threads of another number add in another order


def test_pseudo_labels_do_not_lie_among_other_files(checkpoint, data, tmp_path):
    own = tmp_path/'truth'
    own.mkdir()
    (own/'mine.png').write_bytes(b'mine')
    assert 'mine.png: not a label of dalnet' in error_of('dalnet_pseudo_labels', checkpoint, '--out', own)
    assert [path.name for path in own.iterdir()] == ['mine.png']
    before = sorted(data.rglob('*'))
    assert 'the folder of the dataset' in error_of('dalnet_pseudo_labels', checkpoint, '--data', data, '--out', data)
    assert sorted(data.rglob('*')) == before


def test_submission_needs_neither_masks_nor_tags(checkpoint, data, tmp_path):
    for folder in ('SegmentationClass', 'Annotations', 'ImageSets/Main'): shutil.rmtree(data/folder)
    code, out, err = command('dalnet_eval', checkpoint, '--data', data, '--submission', tmp_path/'s.tar.gz',
                             '--split', 'val', '--scales', '1', '--crf', 'none')
    assert code == 0, err
    with tarfile.open(tmp_path/'s.tar.gz') as file: names = file.getnames()
    folder = 'results/VOC2012/Segmentation/comp6_test_cls'
    images = (data/'ImageSets/Segmentation/val.txt').read_text().split()
    assert names == [f'{folder}/{image}.png' for image in images]


def test_help_comes_without_the_heavy_libraries():
    "Commands import what they need after their options have been read"
    heavy = 'torchvision', 'timm', 'accelerate', 'matplotlib', 'scipy', 'pyarrow'
    look = f"import sys, dalnet.cli; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, '-c', look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '', done.stdout
