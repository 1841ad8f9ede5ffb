"Tables of the paper: interrupted, shared by processes, never repeated"
import json
import signal
import subprocess
import sys
import time
import pytest
from dalnet.grid import plan, read_grid, read_result, run_state

GRID = '''
title = "shapes"
minutes = 1
[[table]]
id = "4"
title = "Losses"
preset = "demo"
measures = ["cam", "seg"]
against = "none"
row = [{name = "none", set = {weight_im = 0, weight_ex = 0}}, {name = "GIA + LEA", paper = {cam = 70.2}}]
'''
SETTINGS = dict(iterations=4, warmup=1, save_every=1, seg_start=1, batch_size=4)


@pytest.fixture
def grid(tmp_path):
    (tmp_path/'grid.toml').write_text(GRID)
    return tmp_path/'grid.toml'


def start(grid, shapes, out, *options, **changes):
    "The command in a process of its own"
    settings = [word for name, value in (SETTINGS | changes).items() for word in (f'--{name}', str(value))]
    code = 'import sys; from dalnet.tables import dalnet_tables; dalnet_tables(sys.argv[1:])'
    return subprocess.Popen([sys.executable, '-c', code, str(grid), '--data', str(shapes), '--out', str(out),
                             '--seeds', '0', *settings, *options],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_grid_continues_and_repeats_nothing(grid, shapes, tmp_path):
    out = tmp_path/'out'
    runs = plan(read_grid(grid, SETTINGS | dict(data=str(shapes), iterations=40)), out, (0,))
    killed = start(grid, shapes, out, iterations=40)
    while not list((runs[0].folder).glob('iter_*')): time.sleep(.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert run_state(runs[0]).startswith('stopped at')                   # its lock is there, and its holder is dead
    said, err = start(grid, shapes, out, iterations=40).communicate()
    assert 'resumed' in said and '2 of 2 runs are done' in said, said + err
    table = json.loads((out/'tables.json').read_text())['tables'][0]
    assert [list(row['seeds']['seg']) for row in table['rows']] == [['0'], ['0']]
    assert list(table['rows'][1]['differences']) == ['cam', 'seg'] and table['rows'][1]['paper'] == {'cam': 70.2}
    before = [read_result(run) for run in runs]
    said, err = start(grid, shapes, out, iterations=40).communicate()
    assert len(said.splitlines()) == 2 and [read_result(run) for run in runs] == before, said + err


def test_two_processes_share_the_runs(grid, shapes, tmp_path):
    out = tmp_path/'out'
    both = [start(grid, shapes, out, '--seeds', '0,1') for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    for run in plan(read_grid(grid, SETTINGS | dict(data=str(shapes))), out, (0, 1)):
        assert run_state(run) == 'done'
        assert sum(f'{run.name}: started' in lines for lines in said) == 1


def test_a_row_that_cannot_run_does_not_stop_the_others(grid, shapes, tmp_path):
    grid.write_text(GRID.replace('weight_ex = 0}', 'weight_ex = 0, text = "absent.npz"}'))
    process = start(grid, shapes, tmp_path/'out')
    said, err = process.communicate()
    assert process.returncode == 2 and '1 of 2 runs are done' in said
    assert err.startswith('error: 1 run failed: none-') and len(err.splitlines()) == 1, err


@pytest.mark.parametrize('options, words', [
    (['--seeds', '0,0'], 'seeds must be different whole numbers'), (['--seed', '1'], 'seed: cannot be given here'),
    (['--table', '9'], 'no such table or row'), (['--lam', '-1'], 'table 4, row none: setting lam'),
    (['--budget', 'soon'], 'budget must be a duration')])
def test_wrong_options_are_one_line(grid, shapes, tmp_path, options, words):
    process = start(grid, shapes, tmp_path/'out', *options)
    err = process.communicate()[1]
    assert process.returncode == 2 and words in err and len(err.splitlines()) == 1, err
    assert not (tmp_path/'out').exists()
