"Runs that are killed, starved of disk, or damaged: the same command ends with the same weights"
import json, os, random, resource, shutil, signal, subprocess, time
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file
from dalnet.checkpoint import Checkpoint, numbered
from dalnet.core import InputError
from dalnet.watch import read_log
from test_cli import BIN, command, error_of

RUN = ['--preset', 'demo', '--iterations', 24, '--seg-start', 9, '--batch-size', 4, '--warmup', 3, '--save-every', 2,
       '--log-every', 3, '--encoder-options', '{"drop_path_rate": 0.2}', '--eval-split', 'none']
NOT_THE_SAME = ('seconds', 'waiting')  # of a line of the log


def start(data, out, *more, **options):
    args = (BIN/'dalnet_train', '--data', data, '--out', out, *RUN, *more)
    return subprocess.Popen([str(arg) for arg in args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True, **options)


def resume(data, out, *more, **options):
    return command('dalnet_train', '--data', data, '--out', out, *RUN, *more, **options)


def names(folder): return sorted(path.name for path in folder.iterdir())


def same(a, b):
    "Two runs: the same weights, moments and log, to the bit"
    one, two = Path(a)/'iter_000024', Path(b)/'iter_000024'
    for file in ('model.safetensors', 'optimizer.safetensors'):
        x, y = load_file(one/file), load_file(two/file)
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), file
    logs = [[{k: v for k, v in line.items() if k not in NOT_THE_SAME} for line in read_log(out)] for out in (a, b)]
    assert logs[0] == logs[1]


@pytest.fixture(scope='module')
def undisturbed(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp('run')/'whole'
    process = start(shapes, out, '--workers', 0)
    assert process.wait(300) == 0, process.stdout.read()
    return out


def wait_for_step(process, seconds):
    "Let a process run for so long after its first line about a step"
    for line in process.stdout:
        if '/24 ' in line or 'already trained' in line: break
    time.sleep(seconds)


@pytest.mark.parametrize('workers', [0, 2])
def test_killed_at_six_random_moments(workers, shapes, undisturbed, tmp_path):
    rng, out, codes = random.Random(workers), tmp_path/'run', []
    for kill in range(6):
        process = start(shapes, out, '--workers', workers)
        if kill % 2: wait_for_step(process, rng.uniform(0, .6))
        else: time.sleep(rng.uniform(4, 9))  # perhaps before anything is done
        if kill % 3: os.killpg(process.pid, signal.SIGKILL)
        else: process.send_signal(signal.SIGTERM)
        codes.append(process.wait(60))
    assert any(code != 0 for code in codes)
    process = start(shapes, out, '--workers', workers)
    assert process.wait(300) == 0, process.stdout.read()
    same(out, undisturbed)
    before, *rest = names(out)  # the last two, all whole
    assert before in ('iter_000022', 'iter_000023')  # 23 if the last SIGTERM came there
    assert rest == ['iter_000024', 'log.jsonl']


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_leave(number, shapes, undisturbed, tmp_path):
    process = start(shapes, tmp_path/'run', '--workers', 2)
    wait_for_step(process, 0)
    os.killpg(process.pid, number)  # as a terminal or a scheduler does
    text = process.stdout.read()
    assert process.wait(60) == 128 + number, text
    assert 'run the same command to resume' in text and 'Traceback' not in text, text
    newest = Checkpoint.newest(tmp_path/'run')
    assert f'iteration {Checkpoint.iteration(newest)} is saved' in text
    process = start(shapes, tmp_path/'run', '--workers', 1)
    assert process.wait(300) == 0
    same(tmp_path/'run', undisturbed)


def halve(path): path.write_bytes(path.read_bytes()[:path.stat().st_size//2])
def zero(path): path.write_bytes(bytes(path.stat().st_size))
def remove(path): path.unlink()


@pytest.mark.parametrize('damage', [halve, zero, remove])
@pytest.mark.parametrize('file', ['model.safetensors', 'optimizer.safetensors', 'config.json'])
def test_damaged_newest_checkpoint(file, damage, shapes, undisturbed, tmp_path):
    out = shutil.copytree(undisturbed, tmp_path/'run')
    damage(out/'iter_000024'/file)
    lines = []
    assert Checkpoint.newest(out, lines.append).name == 'iter_000022'
    assert len(lines) == 1 and 'iter_000024: damaged' in lines[0] and '\n' not in lines[0]


def test_resumes_from_the_one_before(shapes, undisturbed, tmp_path):
    out = shutil.copytree(undisturbed, tmp_path/'run')
    path = out/'iter_000024/optimizer.safetensors'
    path.write_bytes(path.read_bytes()[:-1])
    with (out/'log.jsonl').open('a') as file: file.write('{"iteration": 27, "tot')  # torn
    code, text, err = resume(shapes, out)
    assert code == 0, (text, err)
    assert 'iter_000024: damaged' in text and f'resuming from {out/"iter_000022"}' in text, (text, err)
    same(out, undisturbed)
    code, text, _ = resume(shapes, out)
    assert code == 0 and 'already trained to iteration 24' in text


def test_a_teacher_and_searched_thresholds_resume(shapes, tmp_path):
    new = '--teacher-momentum', .9, '--thresholds', 'searched', '--pseudo-form', 'soft', '--workers', 0
    process = start(shapes, tmp_path/'whole', *new)
    assert process.wait(300) == 0, process.stdout.read()
    out = shutil.copytree(tmp_path/'whole', tmp_path/'run')
    shutil.rmtree(out/'iter_000024')                                      # the teacher and the threshold of 22 are left
    code, text, err = resume(shapes, out, *new)
    assert code == 0 and f'resuming from {out/"iter_000022"}' in text, (text, err)
    same(out, tmp_path/'whole')
    one, two = (load_file(folder/'iter_000024/teacher.safetensors') for folder in (out, tmp_path/'whole'))
    assert all(torch.equal(one[name], two[name]) for name in two)
    states = [json.loads((folder/'iter_000024/config.json').read_text())['state'] for folder in (out, tmp_path/'whole')]
    assert states[0]['threshold'] == states[1]['threshold'] != .475


def test_another_run_is_not_overwritten(shapes, undisturbed):
    line = error_of('dalnet_train', '--data', shapes, '--out', undisturbed, *RUN, '--lr', '.1')
    assert 'lr: 0.001 there, 0.1 here' in line and 'resume' in line


def test_full_disk(shapes, undisturbed, tmp_path):
    "Files may not grow beyond what a checkpoint needs: the third write fails, the checkpoint before stays whole"
    out = shutil.copytree(undisturbed, tmp_path/'run')
    shutil.rmtree(out/'iter_000024')
    limit = (out/'iter_000022/optimizer.safetensors').stat().st_size//2
    process = start(shapes, out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    text = process.stdout.read()
    assert process.wait(60) == 2 and 'Traceback' not in text, text
    line = next(line for line in text.splitlines() if line.startswith('error: '))
    assert 'cannot be written' in line and 'MB are free' in line
    assert names(out) == ['iter_000022', 'log.jsonl']
    assert start(shapes, out).wait(300) == 0
    same(out, undisturbed)


def test_start_again(shapes, undisturbed, tmp_path):
    out = shutil.copytree(undisturbed, tmp_path/'run')
    code, text, err = resume(shapes, out, '--resume', 'false', '--iterations', 2, '--keep', 1)
    assert code == 0 and names(out) == ['iter_000002', 'log.jsonl'], (text, err)


def test_best_so_far_survives(shapes, tmp_path):
    "Scores at intervals, the best checkpoint kept, also over a break"
    options = ['--data', shapes, *RUN[:-2], '--iterations', 8, '--seg-start', 9, '--save-every', 4, '--score-every', 2]
    about = tmp_path/'a/iter_000008/config.json'
    code, text, err = command('dalnet_train', *options, '--out', tmp_path/'a')
    assert code == 0 and text.count(': score ') == 4, (text, err)
    best = [path.name for path in (tmp_path/'a').glob('best_*')]
    state = json.loads(about.read_text())['state']
    assert best == [f'best_{state["best"][0]:06d}'] and Checkpoint.load(tmp_path/'a'/best[0])
    shutil.rmtree(tmp_path/'a/iter_000008')
    shutil.rmtree(tmp_path/'a'/best[0])
    assert command('dalnet_train', *options, '--out', tmp_path/'a')[0] == 0
    assert json.loads(about.read_text())['state']['best'] == state['best']


def test_what_cannot_be_read_is_not_damage(undisturbed, tmp_path, monkeypatch):
    "No permission, a broken disk: the run stops rather than start again over good files"
    def refuse(path): raise PermissionError(13, 'Permission denied', str(path))
    monkeypatch.setattr('dalnet.checkpoint._fingerprint', refuse)
    with pytest.raises(InputError, match='iter_000024: cannot be read .*Permission denied'):
        Checkpoint.newest(undisturbed)
    modes = {path.stat().st_mode for path in (undisturbed/'iter_000024').iterdir()}
    assert len(modes) == 1  # all files as the umask says


def test_none_is_whole(shapes, undisturbed, tmp_path):
    out = shutil.copytree(undisturbed, tmp_path/'run')
    for folder, text in zip(numbered(out), ('{}', '{"config": {}, "files": []}')):
        (folder/'config.json').write_text(text)
    log = (out/'log.jsonl').read_bytes()
    code, text, err = resume(shapes, out)
    assert code == 2 and text.count('damaged (config.json is malformed)') == 2, (text, err)
    assert 'none of its 2 checkpoints is whole' in err and 'Traceback' not in err
    assert (out/'log.jsonl').read_bytes() == log


def test_other_folders_are_left_alone(shapes, undisturbed, tmp_path):
    "A copy of a checkpoint under another name is none, and nothing of somebody else's is removed"
    out = shutil.copytree(undisturbed, tmp_path/'run')
    others = [out/'iter_000022_old', out/'iter_mine', out/'best_photos']
    for other in others: shutil.copytree(out/'iter_000022', other)
    assert [folder.name for folder in numbered(out)] == ['iter_000022', 'iter_000024']
    assert Checkpoint.newest(out).name == 'iter_000024'
    code, text, err = resume(shapes, out, '--resume', 'false')
    assert code == 0 and all((other/'config.json').is_file() for other in others), err
    same(out, undisturbed)
    shutil.rmtree(out/'iter_000024')  # started again by its launcher
    restarted = os.environ | dict(TORCHELASTIC_RESTART_COUNT='1')
    code, text, err = resume(shapes, out, '--resume', 'false', env=restarted)
    assert code == 0 and f'resuming from {out/"iter_000022"}' in text, (text, err)


def test_torn_log(undisturbed, tmp_path):
    lines = (undisturbed/'log.jsonl').read_bytes().splitlines(keepends=True)
    (tmp_path/'log.jsonl').write_bytes(lines[0] + lines[1][:20] + b'\n[]\n' + lines[2] + bytes(30))
    assert read_log(tmp_path) == [json.loads(lines[0]), json.loads(lines[2])]
