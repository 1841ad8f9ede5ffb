"The console scripts as a user meets them: exit codes, one line for each mistake, no traceback"
import json, shutil, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
from dalnet.text import encode_text

BIN = Path(sys.executable).parent


def command(name, *args, cwd=None):
    "Run a console script -> (exit code, stdout, stderr)"
    done = subprocess.run([str(BIN/name), *map(str, args)], capture_output=True, text=True, cwd=cwd, timeout=600)
    return done.returncode, done.stdout, done.stderr


def error_of(*args, cwd=None):
    "The one line of a command that must fail with exit code 2"
    code, out, err = command(*args, cwd=cwd)
    assert code == 2, (code, out, err)
    assert 'Traceback' not in err
    lines = [o for o in err.splitlines() if o.startswith('error: ')]
    assert len(lines) == 1, err
    return lines[0]


@pytest.fixture
def data(shapes, tmp_path): return shutil.copytree(shapes, tmp_path/'data')


def first(data): return (data/'ImageSets/Segmentation/train.txt').read_text().split()[0]


def absent_folder(data): return ['--data', data.parent/'nowhere'], 'nowhere'
def absent_image(data):
    with (data/'ImageSets/Segmentation/train.txt').open('a') as f: f.write('ghost\n')
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


@pytest.mark.parametrize('spoil', [absent_folder, absent_image, unknown_class, no_tag, truncated_jpeg, text_of_other_classes,
                                   text_of_two_widths, weights_of_another_architecture, no_tag_source])
def test_bad_input_is_one_line_before_training(data, tmp_path, spoil):
    args, words = spoil(data)
    line = error_of('dalnet_train', '--preset', 'demo', '--data', data, '--out', tmp_path/'run', *args)
    assert words in line
    assert not list(tmp_path.glob('run/iter_*')) and not (tmp_path/'run/log.jsonl').exists()


def test_train_then_eval_then_mismatched_checkpoint(data, tmp_path):
    small = ['--iterations', 2, '--batch-size', 2, '--save-every', 2, '--encoder-options', '{"depth": 2, "patch_size": 16, "img_size": 96}']
    code, out, err = command('dalnet_train', '--preset', 'demo', '--data', data, '--out', tmp_path/'run', *small)
    assert code == 0, err
    assert 'CAM mIoU' in out and json.loads((tmp_path/'run/cam_scores.json').read_text())['cam']['names'][0] == 'background'
    checkpoint = tmp_path/'run/iter_000002'
    code, out, err = command('dalnet_eval', checkpoint, '--out', tmp_path/'again.json')
    assert code == 0 and json.loads((tmp_path/'again.json').read_text()) == json.loads((tmp_path/'run/cam_scores.json').read_text())
    about = json.loads((checkpoint/'config.json').read_text())
    about['config']['encoder_options']['depth'] = 3
    (checkpoint/'config.json').write_text(json.dumps(about))
    assert 'another architecture' in error_of('dalnet_eval', checkpoint)
    (data/'classes.txt').write_text('\n'.join(['cross', 'disc', 'ring', 'square', 'star', 'cone']))
    for path in (data/'ImageSets/Main').glob('triangle_*'): path.rename(path.with_name(path.name.replace('triangle', 'cone')))
    about['config']['encoder_options']['depth'] = 2
    (checkpoint/'config.json').write_text(json.dumps(about))
    assert "('cone', 'triangle')" in error_of('dalnet_eval', checkpoint, '--tags', 'lists')


def test_untagged_images_are_accepted_when_allowed(data, tmp_path):
    no_tag(data)
    code, out, err = command('dalnet_train', '--preset', 'demo', '--data', data, '--out', tmp_path/'run', '--allow-untagged', 'true',
                             '--iterations', 12, '--batch-size', 2, '--eval-split', 'none')
    assert code == 0, err
    log = [json.loads(o) for o in (tmp_path/'run/log.jsonl').read_text().splitlines()]
    assert all(np.isfinite(v) for o in log for v in o.values())


def test_unknown_option_names_it(data):
    code, _, err = command('dalnet_train', '--data', data, '--bacth-size', 4)
    assert code == 2 and 'bacth' in err and 'Traceback' not in err


def test_voc_mini_makes_steps_on_real_images(voc, tmp_path):
    text = voc.parents[1]/'text/voc_clip_vitb16.npz'
    code, out, err = command('dalnet_train', '--data', voc, '--preset', 'voc_mini', '--text', text, '--out', tmp_path/'run',
                             '--iterations', 3, '--batch-size', 2, '--warmup', 1, '--log-every', 1, '--eval-split', 'none')
    assert code == 0, err
    log = [json.loads(o) for o in (tmp_path/'run/log.jsonl').read_text().splitlines()]
    assert len(log) == 3 and set(log[0]) == {'iteration', 'lr', 'seconds', 'cls', 'inter', 'im', 'ex', 'total'}
    assert all(np.isfinite(v) for o in log for v in o.values())
