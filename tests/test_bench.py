"The benchmarks as a user meets them: what they write, what they refuse, and that a disagreement is no number"
import json
import subprocess
import sys
from unittest import mock
import pytest
import torch
from dalnet import refine
from dalnet.bench_cli import dalnet_bench

NETWORK = ['--encoder', 'vit_tiny_patch16_224', '--encoder-options', '{"depth": 3, "img_size": 64}']
SIZES = ['--size', '64', '--batch', '2', '--classes', '5', '--rounds', '1', '--device', 'cpu', '--precision', 'fp32']
DEMO = ['--preset', 'demo', '--device', 'cpu']
TINY_DEMO = ['--crop', '64', '--batch-size', '1', '--encoder-options', '{"depth": 3, "patch_size": 16, "img_size": 64}']
IMAGES = ['--images', '1', '--size', '64', '--rounds', '1', '--device', 'cpu']


def error_of(argv, capsys):
    "The one line of a benchmark that must end with exit code 2"
    with pytest.raises(SystemExit) as end: dalnet_bench(argv)
    lines = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize('what, argv, parts', [
    ('parts', [*NETWORK, *SIZES], ['cams', 'par', 'contrast', 'lattice', 'energy', 'segmentation']),
    ('step', [*NETWORK, *SIZES], ['step, three scales', 'step, one scale']),
    ('step', [*DEMO, *NETWORK, *SIZES], ['step without segmentation', 'step with segmentation']),
    ('crf', IMAGES, ['crf, same labels', 'crf, all labels']),
    ('predict', [*DEMO, *IMAGES], ['predict, one view', 'predict, scales and flips', 'predict, scales, flips, CRF']),
    ('evaluate', [*DEMO, *IMAGES], ['CAMs, fp32', 'segmentation, fp32', 'segmentation and CRF, fp32'])])
def test_benchmarks_write_json_and_a_chart(what, argv, parts, tmp_path, capsys):
    if what in ('parts', 'crf'): pytest.importorskip('pydensecrf')
    dalnet_bench([what, *argv, '--out', str(tmp_path)])
    report = json.loads((tmp_path/f'{what}.json').read_text())
    assert [row['part'] for row in report['rows'] if 'bf16' not in row['part']] == parts
    assert {'cpu', 'threads', 'torch', 'gpu', 'flops_per_second'} <= set(report['machine'])
    for row in report['rows']:
        for side in filter(None, (row['plain'], row['ours'])):
            assert len(side['seconds']) == 1 and min(side['seconds']) > 0 and side['memory'] >= 0 <= side['flops']
        assert (row['ratio'] is None) == (not row['plain'])
    assert (tmp_path/f'{what}.png').read_bytes().startswith(b'\x89PNG')
    printed = capsys.readouterr().out
    assert all(part in printed for part in parts) and f'{what}.json' in printed


def test_growth_fits_exponents(tmp_path, capsys):
    along = 'step-pixels,step-labels,score-images'
    dalnet_bench(['growth', *DEMO, *TINY_DEMO, '--along', along, '--rounds', '1', '--out', str(tmp_path)])
    axes = json.loads((tmp_path/'growth.json').read_text())['axes']
    assert axes['step-pixels']['sizes'] == [64**2, 96**2, 128**2]
    assert axes['step-labels']['sizes'] == [21, 81, 171, 1000]
    for found in axes.values():
        assert set(found['exponents']) == {'seconds', 'memory'} and min(found['seconds']) > 0
    assert axes['score-images']['exponents']['seconds'] > 0 and len(axes['score-images']['memory']) == 3
    assert (tmp_path/'growth.png').is_file() and 'MiB for each further one' in capsys.readouterr().out


def test_bf16_is_compared_with_float32(tmp_path):
    dalnet_bench(['parts', '--parts', 'cams', *NETWORK, *SIZES, '--precision', 'bf16', '--out', str(tmp_path)])
    rows = json.loads((tmp_path/'parts.json').read_text())['rows']
    assert [row['dtype'] for row in rows] == ['bfloat16']


@pytest.mark.parametrize('name, argv', [
    ('dalnet.bench.ptc_loss', ['parts', '--parts', 'contrast']),
    ('dalnet.bench.refine_labels', ['parts', '--parts', 'par']),
    ('dalnet.model.ptc_loss', ['step'])])
def test_a_disagreement_is_one_line_and_no_number(name, argv, tmp_path, capsys):
    def wrong(*args): return getattr(refine, name.split('.')[-1])(*args) + 1
    with mock.patch(name, wrong):
        line = error_of([*argv, *NETWORK, *SIZES, '--out', str(tmp_path)], capsys)
    assert 'dalnet and the plain form differ by' in line and 'nothing was measured' in line
    assert not list(tmp_path.iterdir())


def test_other_labels_of_the_crf_are_a_disagreement(tmp_path, capsys):
    pytest.importorskip('pydensecrf')
    def uniform(image, probs, engine, **options): return torch.rand_like(probs)
    with mock.patch('dalnet.bench_use.dense_crf', uniform):
        assert 'crf, same labels' in error_of(['crf', *IMAGES, '--out', str(tmp_path)], capsys)


@pytest.mark.parametrize('argv, words', [
    (['parts', '--parts', 'cam'], 'part must be one of cams'),
    (['parts', '--size', '72', *NETWORK], 'size must be a multiple of 32'),
    (['parts', '--encoder', 'vit_tniy'], 'timm knows no such model'),
    (['step', '--rounds', '0'], 'rounds must be at least 1'),
    (['crf', '--images', '0'], 'images must be at least 1'),
    (['predict', '--checkpoint', 'nowhere'], 'nowhere'),
    (['evaluate', '--data', 'nowhere'], 'nowhere'),
    (['growth', '--along', 'words'], 'along must be one of step-pixels'),
    (['index', '--rows', '7'], 'rows must be more than')])
def test_mistakes_are_one_line(argv, words, capsys): assert words in error_of(argv, capsys)


@pytest.mark.parametrize('what', ['', 'parts', 'step', 'crf', 'predict', 'evaluate', 'growth', 'data', 'index'])
def test_help_loads_nothing_heavy(what):
    code = ('import sys; from dalnet.bench_cli import dalnet_bench\n'
            f'try: dalnet_bench({[*filter(None, [what]), "--help"]})\n'
            'finally: print(*("LOADED " + name for name in ("torch", "timm", "matplotlib") if name in sys.modules))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and 'usage' in done.stdout and 'LOADED' not in done.stdout, done.stdout + done.stderr
