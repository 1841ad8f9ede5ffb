"Several processes: the losses of one, and what happens when one of them dies"
import json, os, re, signal, socket, subprocess, sys, time
from pathlib import Path
import psutil, pytest, torch
from safetensors.torch import load_file
from dalnet.checkpoint import Checkpoint
from test_cli import BIN, command

STEPS = '''
import json, sys
from dataclasses import replace
from dalnet.build import build_model, build_text, param_groups, training_data
from dalnet.config import PRESETS
from dalnet.batches import load_batches
from dalnet.step import Phase, TrainStep, start_accelerator, take_step
from dalnet.processes import is_main, leave_group
import torch
config = replace(PRESETS['demo'], data=sys.argv[1], batch_size=4, lr=1e-5, local_crops=2, local_size=32,
                 global_views=2, local_outside='background',
                 **json.loads(sys.argv[3]))
accelerator, data = start_accelerator(config), training_data(config)
torch.manual_seed(0)
model = build_model(config, build_text(config, data.classes)).train()
step, optimizer = accelerator.prepare(
    TrainStep(model, config), torch.optim.AdamW(param_groups(model, config), lr=1e-5))
found = []
for number, batch in zip(range(4), load_batches(data, config)):
    found.append(take_step(accelerator, step, optimizer, batch, Phase(number > 0), config)[0])
    optimizer.step()
if is_main(): open(sys.argv[2], 'w').write(json.dumps(found))
leave_group()
'''


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def launch(n, *args, port=None, ranks=None, **more):
    "Start a command n times (or the copies `ranks` of it) as a launcher does, but without watching them -> processes"
    group = dict(WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1')
    env = os.environ | group | dict(MASTER_PORT=str(port or free_port()), OMP_NUM_THREADS='1') | more
    return [subprocess.Popen([str(arg) for arg in args], env=env | dict(RANK=str(rank), LOCAL_RANK=str(rank)),
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for rank in ranks or range(n)]


def wait_for_lines(path, n, seconds=120):
    "Wait until a log holds more than n lines"
    end = time.monotonic() + seconds
    while not (path.is_file() and path.read_text().count('\n') > n) and time.monotonic() < end: time.sleep(.1)


def first_steps(data, path, n=1, **settings):
    "The values of four steps"
    processes = launch(n, sys.executable, '-c', STEPS, data, path, json.dumps(settings))
    texts = [process.communicate(timeout=300)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), texts
    return json.loads(Path(path).read_text())


@pytest.fixture(scope='module')
def alone(shapes, tmp_path_factory): return first_steps(shapes, tmp_path_factory.mktemp('steps')/'one.json')


@pytest.mark.parametrize('n, settings', [
    (2, {}), (4, {}), (1, dict(accumulate=2)), (2, dict(accumulate=2)), (1, dict(grad_checkpointing=True))])
def test_a_step_is_the_same_however_it_is_spread(n, settings, shapes, alone, tmp_path):
    found = first_steps(shapes, tmp_path/'many.json', n, **settings)
    assert list(alone[0]) == ['cls', 'inter', 'im', 'ex', 'local', 'ptc', 'total', 'grad']
    assert {'seg', 'reg'} <= set(alone[1])
    for number, (one, many) in enumerate(zip(alone, found)):
        assert one.keys() == many.keys()
        for name, value in one.items():
            assert abs(value - many[name]) <= 1e-5*max(1, abs(value)), (number, name, value, many[name])


def test_a_teacher_and_soft_labels_are_the_same_however_they_are_spread(shapes, tmp_path):
    new = dict(teacher_momentum=.9, thresholds='searched', pseudo_form='soft')
    one = first_steps(shapes, tmp_path/'one.json', **new)
    many = first_steps(shapes, tmp_path/'many.json', 2, accumulate=2, **new)
    for alone, spread in zip(one, many):
        assert alone.keys() == spread.keys() and 'threshold' in alone
        for name, value in alone.items(): assert abs(value - spread[name]) <= 1e-5*max(1, abs(value)), name


def test_bfloat16_gives_nearly_the_same(shapes, alone, tmp_path):
    "Within 2% of each term (and 0.02) on the CPU; the norm of the gradient, which divides by short tokens, within 10%"
    found = first_steps(shapes, tmp_path/'bf16.json', precision='bf16')
    assert found[0] != alone[0]
    for full, half in zip(alone, found):
        for name, value in full.items():
            share = .1 if name == 'grad' else .02
            assert abs(value - half[name]) <= share*max(1, abs(value)), (name, value, half[name])


RUN = ['--preset', 'demo', '--iterations', 40, '--seg-start', 2, '--batch-size', 4, '--save-every', 2,
       '--log-every', 1, '--eval-split', 'none']


def test_one_dies_the_other_stops_and_the_job_resumes(shapes, tmp_path):
    args = [BIN/'dalnet_train', '--data', shapes, '--out', tmp_path/'run', *RUN]
    for killed in (1, 0):
        processes = launch(2, *args)
        wait_for_lines(tmp_path/'run/log.jsonl', 4 + 8*(killed == 0))
        processes[killed].kill()
        died = time.monotonic()
        text = processes[1 - killed].communicate(timeout=60)[0]
        assert time.monotonic() - died < 60 and processes[1 - killed].returncode == 2, text
        assert f'process {1 - killed} of 2: another process has died or does not answer' in text, text
        assert 'Traceback' not in text, text
    newest = Checkpoint.newest(tmp_path/'run')
    torchrun = [BIN/'torchrun', '--nproc-per-node', 2, '--master-port']
    code, text, err = command(*torchrun, 29517, *args)
    assert code == 0 and f'resuming from {newest}' in text and text.count('40/40') == 1, (text, err)
    code, text, err = command(*torchrun, 29518, *args[:-2], '--out', tmp_path/'whole', '--eval-split', 'val')
    assert code == 0 and text.count('IoU (%)') == 1, (text, err)
    resumed, whole = (load_file(tmp_path/f'{name}/iter_000040/model.safetensors') for name in ('run', 'whole'))
    assert all(torch.equal(resumed[name], whole[name]) for name in resumed)  # one thread each: to the bit here too


def test_one_that_falls_silent(shapes, tmp_path):
    "A process that is stopped but not dead is given up after `timeout` seconds"
    processes = launch(2, BIN/'dalnet_train', '--data', shapes, '--out', tmp_path/'run', *RUN, '--timeout', 10)
    wait_for_lines(tmp_path/'run/log.jsonl', 3)
    processes[1].send_signal(signal.SIGSTOP)
    try: text = processes[0].communicate(timeout=60)[0]
    finally: processes[1].kill()
    assert processes[0].returncode == 2 and 'another process has died or does not answer' in text, text


def test_a_signal_to_one_saves_and_stops_all(shapes, tmp_path):
    processes = launch(2, BIN/'dalnet_train', '--data', shapes, '--out', tmp_path/'run', *RUN)
    wait_for_lines(tmp_path/'run/log.jsonl', 3)
    processes[1].send_signal(signal.SIGTERM)
    texts = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], texts
    assert all('run the same command to resume' in text for text in texts), texts
    saved = re.search(r'iteration (\d+) is saved', texts[0])
    assert Checkpoint.iteration(Checkpoint.newest(tmp_path/'run')) == int(saved[1])


def test_a_batch_that_cannot_be_split(shapes, tmp_path):
    processes = launch(3, BIN/'dalnet_train', '--data', shapes, '--out', tmp_path/'run', *RUN)
    texts = [process.communicate(timeout=100)[0] for process in processes]
    assert all(process.returncode == 2 for process in processes), texts
    assert all('batch_size: 4 images cannot be split among 3 processes' in text for text in texts), texts


def test_processes_must_agree(shapes, tmp_path):
    "Copies of a dataset on several machines, or commands, that are not the same"
    args, port = [BIN/'dalnet_train', '--data', shapes, '--out', tmp_path/'run', *RUN], free_port()
    processes = [launch(2, *args, '--seed', seed, port=port, ranks=[seed])[0] for seed in (0, 1)]
    texts = [process.communicate(timeout=100)[0] for process in processes]
    assert all(process.returncode == 2 for process in processes), texts
    assert all('seed: the processes do not agree (0 and 1)' in text for text in texts), texts


def test_torchrun_restarts_what_was_killed(shapes, tmp_path):
    args = [BIN/'torchrun', '--standalone', '--nproc-per-node', 2, '--max-restarts', 1,
            BIN/'dalnet_train', '--data', shapes, '--out', tmp_path/'run', *RUN]
    launcher = subprocess.Popen([str(arg) for arg in args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env=os.environ | dict(OMP_NUM_THREADS='1'))
    wait_for_lines(tmp_path/'run/log.jsonl', 8)
    children = psutil.Process(launcher.pid).children()
    copies = [child for child in children if 'dalnet_train' in ' '.join(child.cmdline())]
    assert len(copies) == 2
    copies[1].kill()
    text = launcher.communicate(timeout=200)[0]
    assert launcher.returncode == 0 and 'resuming from ' in text and '40/40' in text, text


def test_torchrun_ends_with_the_line_of_the_cause(shapes, tmp_path):
    torchrun = [BIN/'torchrun', '--standalone', '--nproc-per-node', 2, BIN/'dalnet_train', '--data', shapes]
    code, out, err = command(*torchrun, '--out', tmp_path/'run', *RUN, '--batch-size', 3)
    assert code == 1, (code, out, err)
    own = [line for line in err.splitlines() if 'cannot be split among 2' in line and "torchrun's own" in line]
    assert own and own[0].startswith(('error: setting batch_size: 3', 'process 1: error: setting batch_size: 3')), err
    assert 'cannot be split among 2 processes' in err.partition('Root Cause')[2], err


def test_a_stopped_rank_ends_all_others_in_time(shapes, tmp_path):
    "Within `timeout` and five seconds; and once it wakes up, it ends as well"
    processes = launch(3, BIN/'dalnet_train', '--data', shapes, '--out', tmp_path/'run', *RUN, '--batch-size', 3,
                       '--timeout', 10)
    wait_for_lines(tmp_path/'run/log.jsonl', 3)
    processes[1].send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        texts = [processes[rank].communicate(timeout=60)[0] for rank in (0, 2)]
        assert time.monotonic() - stopped < 10 + 5, texts
    finally: processes[1].send_signal(signal.SIGCONT)
    texts.insert(1, processes[1].communicate(timeout=20)[0])
    assert [process.returncode for process in processes] == [2, 2, 2], texts
    assert all('another process has died or does not answer' in text for text in texts), texts
    assert not any('Traceback' in text for text in texts), texts
