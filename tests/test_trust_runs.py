"Nothing that is read is trusted: damaged, edited or absurd files, and what happens to a run, end in one clear line"
import json, shutil, signal, subprocess, sys, time
from dataclasses import replace
from functools import partial
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file
from dalnet.build import build_model, build_text, check_encoder_options, open_data
from dalnet.bench_cli import dalnet_bench
from dalnet.checkpoint import Checkpoint, _seal, has_segmentation
from dalnet.cli import dalnet_data, dalnet_demo, dalnet_predict, dalnet_train
from dalnet.config import PRESETS
from dalnet.core import InputError
from dalnet.data import open_dataset
from dalnet.evaluation import evaluate_cams, evaluate_segmentation
from dalnet.fetch import dalnet_fetch
from dalnet.index import build_index
from dalnet.inference import Predictor
from dalnet.label_files import predict_files
from dalnet.tables import dalnet_tables
from dalnet.text import TextEmbeddings
from test_cli import BIN, error_of

CONFIG = replace(PRESETS['demo'], encoder_options=dict(depth=3, patch_size=16, img_size=32), seg_width=16)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "A small checkpoint of 70 iterations, which trained its segmentation head"
    text = build_text(CONFIG, ('cat', 'dog'))
    model = build_model(CONFIG, text)
    optimizer = torch.optim.AdamW(model.parameters())
    return Checkpoint.save(tmp_path_factory.mktemp('saved')/'iter_000070', model, CONFIG, text, 70, optimizer)


@pytest.fixture
def checkpoint(saved, tmp_path): return shutil.copytree(saved, tmp_path/'iter_000070')


def edit(folder, change, seal=False):
    "Let `change` edit what a config.json says; `seal` makes it match again"
    about = json.loads((folder/'config.json').read_text())
    change(about)
    if seal: about['fingerprint'] = _seal(about)
    (folder/'config.json').write_text(json.dumps(about))


def flip_bit(path, at):
    "Flip one bit of a file"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def refused(folder, *words):
    "Loading must raise an `InputError` that says all the words, in one line"
    with pytest.raises(InputError) as caught: Checkpoint.load(folder)
    assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value), caught.value


# what a checkpoint says about its encoder

@pytest.mark.parametrize('options', [
    dict(checkpoint_path='evil.pth'), dict(cache_dir='/'), dict(pretrained_cfg=dict(file='evil.pth')),
    dict(pretrained_cfg_overlay={}), dict(scriptable=True), dict(depth=10**6), dict(patch_size=0),
    dict(embed_dim=10**9), dict(depth=-1), dict(depth=True), dict(depth='4'), dict(depth=2.5),
    dict(img_size=[32, 10**9]), dict(img_size=[32]*3), dict(drop_path_rate=1.), dict(drop_path_rate='x'),
    dict(global_pool=[]), dict(qkv_bias=1), dict(frozen=-1)], ids=str)
def test_encoder_options_are_on_a_list(options, checkpoint, monkeypatch):
    import timm
    monkeypatch.setattr(timm, 'create_model', lambda *args, **more: pytest.fail('built before it was checked'))
    name = next(iter(options))
    edit(checkpoint, lambda about: about['config']['encoder_options'].update(options), seal=True)
    refused(checkpoint, 'encoder_options', name)
    with pytest.raises(InputError): check_encoder_options(options)


@pytest.mark.parametrize('settings', [dict(width=10**9), dict(seg_width=10**9), dict(width=2**62)], ids=str)
def test_sizes_are_compared_before_memory_is_taken(settings, checkpoint):
    edit(checkpoint, lambda about: about['config'].update(settings), seal=True)
    refused(checkpoint, 'iter_000070')


def test_presets_and_options_of_timm_are_on_the_list():
    for config in PRESETS.values(): check_encoder_options(config.encoder_options)
    check_encoder_options(dict(img_size=[96, 128], num_heads=4, mlp_ratio=2, class_token=False, global_pool='avg'))


# what a checkpoint's files hold

@pytest.mark.parametrize('at', [9, 5000, -1])
def test_a_flipped_bit_of_the_weights_is_an_error(at, checkpoint):
    flip_bit(checkpoint/'model.safetensors', at)
    refused(checkpoint, 'model.safetensors does not match its fingerprint')


def test_prediction_and_scoring_refuse_a_flipped_bit(checkpoint, shapes, tmp_path):
    flip_bit(checkpoint/'model.safetensors', -1)
    for args in (('dalnet_eval', checkpoint, '--data', shapes),
                 ('dalnet_predict', shapes/'JPEGImages', '--checkpoint', checkpoint, '--out', tmp_path/'out')):
        assert 'fingerprint' in error_of(*args)


def test_the_record_has_a_fingerprint(checkpoint):
    edit(checkpoint, lambda about: about.update(iteration=58))
    refused(checkpoint, 'config.json does not match its fingerprint')
    for use in (Checkpoint.iteration, has_segmentation):
        with pytest.raises(InputError, match='fingerprint'): use(checkpoint)
    said = []
    assert Checkpoint.newest(checkpoint.parent, said.append) is None
    assert 'config.json does not match' in said[0]


def test_the_moments_are_checked_too(checkpoint):
    flip_bit(checkpoint/'optimizer.safetensors', -1)
    model = Checkpoint.load(checkpoint)[0]
    with pytest.raises(InputError, match='optimizer.safetensors does not match'):
        Checkpoint.restore(checkpoint, model, torch.optim.AdamW(model.parameters()))


def test_the_name_agrees_with_the_iteration(checkpoint):
    refused(checkpoint.rename(checkpoint.with_name('iter_000058')), 'iteration 70')
    model, _ = Checkpoint.load(checkpoint.with_name('iter_000058').rename(checkpoint.with_name('mine')))
    assert model.names == ('cat', 'dog')


@pytest.mark.parametrize('change', [
    dict(iteration='70'), dict(iteration=-1), dict(iteration=None), dict(names=[1, 2]), dict(names='catdog'),
    dict(names=['cat', 'cat']), dict(prompts=None), dict(text_source=3), dict(state=[]), dict(files=[]),
    dict(config=[])], ids=str)
def test_a_malformed_record_is_one_line(change, checkpoint):
    edit(checkpoint, lambda about: about.update(change), seal=True)
    refused(checkpoint, 'iter_000070')


def test_a_checkpoint_without_fingerprints_loads_with_a_note(checkpoint, capsys):
    edit(checkpoint, lambda about: [about.pop(name) for name in ('files', 'fingerprint')])
    Checkpoint.load(checkpoint)
    assert 'has no fingerprint' in capsys.readouterr().err


# weights and maps that are no numbers

def spoil(checkpoint, value):
    "Put a value into the weights of a checkpoint, with matching fingerprints"
    weights = load_file(checkpoint/'model.safetensors')
    weights['seg_head.0.weight'][0] = value
    save_file(weights, checkpoint/'model.safetensors')
    edit(checkpoint, lambda about: about['files'].pop('model.safetensors'), seal=True)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_refused(value, checkpoint):
    spoil(checkpoint, value)
    refused(checkpoint, 'seg_head.0.weight', 'NaN or infinity')


def test_maps_that_are_not_finite_are_refused_for_each_image(shapes, tmp_path):
    "The weights of this model became NaN after it was loaded"
    dataset = open_data(replace(CONFIG, data=str(shapes)), part='val')
    model = build_model(CONFIG, build_text(CONFIG, dataset.classes)).eval()
    with torch.no_grad(): model.head.weight.fill_(float('nan')), model.seg_head[0].weight.fill_(float('nan'))
    pictures = sorted((shapes/'JPEGImages').glob('*'))[:2]
    done, before, failures = predict_files(Predictor(model, 'cpu', (1.,)), pictures, tmp_path/'out')
    assert (done, before) == (0, 0) and not list((tmp_path/'out').glob('*.png'))
    assert all(str(path) in line and 'NaN' in line for path, line in zip(pictures, failures))
    for score in (evaluate_cams, evaluate_segmentation):
        with pytest.raises(InputError, match='NaN or infinity'): score(model, dataset, (1.,), False)


# text files

VECTORS = dict(names=np.array(['cat', 'dog']), prompts=np.array(['a cat', 'a dog']), fg=np.eye(2, 8),
               bg=np.ones((1, 8)))


@pytest.mark.parametrize('change, words', [
    (dict(fg=np.zeros((2, 8))), 'zero'), (dict(bg=np.zeros((1, 8))), 'zero'),
    (dict(fg=np.ones((2, 0)), bg=np.ones((1, 0))), '0 wide'),
    (dict(fg=np.zeros((2, 8), 'M8[s]')), 'not numbers'), (dict(bg=np.ones((1, 8), bool)), 'not numbers'),
    (dict(fg=np.ones((2, 8), complex)), 'not numbers'), (dict(names=np.array([1, 2])), 'not all text'),
    (dict(prompts=np.array([1., 2.])), 'not all text'), (dict(names=np.array(['cat', 'cat'])), 'twice')])
def test_text_files_of_other_things_are_refused(change, words, tmp_path):
    np.savez(tmp_path/'text.npz', **VECTORS)
    assert TextEmbeddings.load(tmp_path/'text.npz').names == ('cat', 'dog')
    np.savez(tmp_path/'text.npz', **VECTORS | change)
    with pytest.raises(InputError, match=words) as caught: TextEmbeddings.load(tmp_path/'text.npz')
    assert 'text.npz' in str(caught.value)


# what happens to a run

def train(data, out, *more, **options):
    "Start a long training of a small network in a process of its own"
    words = ['--preset', 'demo', '--iterations', 400, '--batch-size', 2, '--log-every', 2, '--eval-split', 'none',
             '--seg-start', 400, '--crop', 32, '--encoder-options', '{"depth": 3, "patch_size": 16, "img_size": 32}']
    args = [str(word) for word in (BIN/'dalnet_train', '--data', data, '--out', out, *words, *more)]
    return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def wait_for_step(process):
    "Wait for the first line about a step"
    for line in process.stdout:
        if '/400 ' in line: return
    raise AssertionError('it took no step')


def ended(process, code):
    "The last line of a process that must end soon with an exit code, without a traceback"
    text = process.communicate(timeout=240)[0]
    assert process.returncode == code and 'Traceback' not in text, text
    return text.strip().splitlines()[-1]


@pytest.fixture
def data(shapes, tmp_path): return shutil.copytree(shapes, tmp_path/'data')


def test_a_second_training_in_one_folder_is_refused(data, tmp_path):
    first = train(data, tmp_path/'run', '--workers', 0)
    wait_for_step(first)
    line = ended(train(data, tmp_path/'run', '--workers', 0), 2)
    assert f'in use by process {first.pid} on' in line
    first.send_signal(signal.SIGKILL), first.wait()
    assert (tmp_path/'run/train.lock').exists()
    third = train(data, tmp_path/'run', '--workers', 0)  # the lock is stale
    wait_for_step(third)
    third.send_signal(signal.SIGTERM)
    assert 'run the same command to resume' in ended(third, 128 + signal.SIGTERM)
    assert not (tmp_path/'run/train.lock').exists()


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_image_ends_the_run_and_saves_what_was_done(workers, data, tmp_path):
    process = train(data, tmp_path/'run', '--workers', workers)
    wait_for_step(process)
    for path in (data/'JPEGImages').iterdir(): path.write_bytes(path.read_bytes()[:900])
    assert 'cannot be decoded' in ended(process, 2)
    last = Checkpoint.newest(tmp_path/'run')
    assert last and Checkpoint.iteration(last) >= 2


def test_a_closed_terminal_saves_too(data, tmp_path):
    with_terminal = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)       # even if the tests run under nohup
    process = train(data, tmp_path/'run', '--workers', 2, preexec_fn=with_terminal)
    wait_for_step(process)
    process.send_signal(signal.SIGHUP)
    assert 'is saved in' in ended(process, 128 + signal.SIGHUP)


def test_a_removed_folder_is_made_again(data, tmp_path):
    process = train(data, tmp_path/'run', '--workers', 0)
    wait_for_step(process)
    shutil.rmtree(tmp_path/'run')
    for line in process.stdout:
        if 'was removed during the run' in line: break
    process.send_signal(signal.SIGTERM)
    assert 'is saved in' in ended(process, 128 + signal.SIGTERM)
    assert Checkpoint.newest(tmp_path/'run') and (tmp_path/'run/log.jsonl').stat().st_size


def test_a_run_does_not_resume_on_another_list(data, tmp_path):
    process = train(data, tmp_path/'run', '--workers', 0)
    wait_for_step(process)
    process.send_signal(signal.SIGTERM)
    ended(process, 128 + signal.SIGTERM)
    names = data/'ImageSets/Segmentation/train.txt'
    names.write_text(''.join(names.read_text().splitlines(keepends=True)[:-1]))
    assert 'another list of images' in ended(train(data, tmp_path/'run', '--workers', 0), 2)
    process = train(data, tmp_path/'run', '--workers', 0, '--skip-bad', 'true')
    assert 'skip_bad: False there' in ended(process, 2)


# what a command says when something is wrong with it, or with us

def said(command, capsys, *argv):
    "The exit code and the lines of a command that runs in this process"
    with pytest.raises(SystemExit) as end: command([str(word) for word in argv])
    return end.value.code, capsys.readouterr().err.strip().splitlines()


def test_a_bug_is_one_line_and_a_file(capsys, monkeypatch):
    import dalnet.demo
    monkeypatch.setattr(dalnet.demo, 'run_demo', lambda **options: [][1])
    code, lines = said(dalnet_demo, capsys)
    assert code == 3 and len(lines) == 1 and 'this is a bug in dalnet, please report it' in lines[0], lines
    assert 'IndexError: list index out of range' in Path(lines[0].split()[-1]).read_text()


@pytest.mark.parametrize('call, argv, near', [
    (dalnet_train, ['--bacth-size', 4], '--batch-size'), (dalnet_train, ['--preset', 'voc_mni'], 'voc_mini'),
    (dalnet_train, ['--data', 'x', '--zzzz', '3'], '--help'), (dalnet_predict, [], '--help'),
    (dalnet_data, ['tgas', 'x'], 'tags'), (dalnet_data, ['tags', 'x', '--quik'], '--quick'),
    (dalnet_bench, ['stepp'], 'step'), (dalnet_bench, ['step', '--round', 3, '--devise', 'cpu'], '--device'),
    (dalnet_fetch, ['--prest', 'voc_mini'], '--preset'), (dalnet_tables, ['x', '--budgt', '1h'], '--budget')])
def test_a_wrong_option_is_one_line_with_the_nearest(call, argv, near, capsys):
    code, lines = said(call, capsys, *argv)
    assert code == 2 and len(lines) == 1 and lines[0].startswith('error: ') and near in lines[0], lines


def test_a_killed_scoring_names_the_checkpoint(data, tmp_path, capsys, monkeypatch):
    import dalnet.evaluation
    monkeypatch.setattr(dalnet.evaluation, 'report_scores', lambda *args, **more: signal.raise_signal(signal.SIGTERM))
    code, lines = said(dalnet_train, capsys, '--preset', 'demo', '--data', data, '--out', tmp_path/'run',
                       '--iterations', 1, '--batch-size', 1, '--warmup', 0, '--encoder-options', '{"depth": 2}')
    assert code == 128 + signal.SIGTERM and 'dalnet_eval' in lines[-1] and 'iter_000001' in lines[-1], lines


# caches

@pytest.mark.parametrize('name', ['index.arrow', 'about.json'])
@pytest.mark.parametrize('damage', [
    lambda data: data[:-9], lambda data: b'', lambda data: data[:-30] + b'x' + data[-29:]])
def test_a_damaged_index_is_built_again(name, damage, tmp_path, capsys):
    Image.new('RGB', (8, 8)).save(tmp_path/'a.jpg')
    (tmp_path/'tags.csv').write_text('image,tags\na.jpg,cat\n')
    path = build_index(tmp_path/'tags.csv')/name
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert open_dataset(tmp_path/'tags.csv').classes == ('cat',) and path.read_bytes() == before
    assert 'is damaged; it is built again' in capsys.readouterr().err


@pytest.mark.parametrize('damage', [
    lambda data: data[:99], lambda data: b'', lambda data: data.replace(b'|u1', b'<f8'),
    lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:]])                      # one bit of one pixel
def test_a_damaged_decoded_copy_is_made_again(damage, tmp_path, capsys):
    Image.new('RGB', (8, 8), 'red').save(tmp_path/'a.png')
    (tmp_path/'tags.csv').write_text('image,tags\na.png,cat\n')
    dataset = open_dataset(tmp_path/'tags.csv')
    dataset.keep_decoded(tmp_path/'kept')
    before = dataset[0]['image']
    path, = (tmp_path/'kept').rglob('*.npy')
    path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(dataset[0]['image'], before) and torch.equal(dataset[0]['image'], before)
    assert capsys.readouterr().err.count('is damaged; the image is decoded again') == 1


# Ctrl-C while a command is still loading

PRESS = """
import os, signal, sys
class Press:
    def find_spec(self, name, *more):
        if name == sys.argv[1]: os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
sys.argv[0] = '/usr/local/bin/dalnet_train'
from dalnet.cli import dalnet_train
sys.exit(dalnet_train(['--data', sys.argv[2], '--preset', 'demo', '--out', sys.argv[2] + '/out', '--iterations', '1']))
"""


@pytest.mark.parametrize('module', [
    'dalnet.options', 'tomlkit', 'fastcore.docments', 'torch', 'numpy', 'dalnet.training'])
def test_an_interrupt_during_the_imports_is_one_line(module, tmp_path):
    done = subprocess.run([sys.executable, '-c', PRESS, module, tmp_path], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, '', 'interrupted\n')
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path('/proc/self/maps').is_file(), reason='/proc says what a process has loaded')
def test_an_interrupt_in_the_first_second_is_one_line(tmp_path):
    command = [sys.executable, BIN/'dalnet_train', '--data', tmp_path, '--out', tmp_path/'out']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and 'libtorch' not in Path(f'/proc/{process.pid}/maps').read_text(): time.sleep(.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == 'interrupted\n' and process.returncode == 130
