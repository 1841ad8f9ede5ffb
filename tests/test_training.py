"Training where something is wrong, or odd: numbers, labels, files, settings"
import json, os, pickle, re, sqlite3, subprocess, sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file
from dalnet.checkpoint import Checkpoint
from dalnet.config import PRESETS, write_config
from dalnet.core import IGNORE
from dalnet.encoder import read_weights
from dalnet.model import losses, total_loss
from dalnet.pseudo import PseudoLabels, pseudo_labels
from dalnet.refine import PAR
from dalnet.text import encode_text
from dalnet.build import build_model, build_text, training_data
from dalnet.step import Phase, TrainStep
from dalnet.training import train
from dalnet.watch import read_log
from test_bad_data import one_line
from test_cli import command, error_of


@pytest.fixture
def config(shapes, tmp_path):
    return replace(PRESETS['demo'], data=str(shapes), out=str(tmp_path/'run'), iterations=6, batch_size=3,
                   seg_start=2, warmup=1, save_every=6, log_every=1)


class Poisoned(torch.utils.data.Dataset):
    "A dataset with one picture that is not a number"
    def __init__(self, dataset, bad): self.dataset, self.bad = dataset, bad
    def __len__(self): return len(self.dataset)
    def __getattr__(self, name): return getattr(self.dataset, name)
    def __getitem__(self, i):
        item = self.dataset[i]
        return item | dict(image=item['image']*float('nan')) if item['name'] in self.bad else item


def all_numbers(out):
    "Whether every value of a run's log is a number"
    return all(value == value for line in read_log(out) for value in line.values())


def panels(config): return sorted(path.name for path in Path(config.out).glob('panels/*'))


# numbers

def test_nan_stops_with_term_iteration_and_images(config):
    data = training_data(config)
    line = one_line(lambda: train(config, Poisoned(data, data.names[4])),
                    'loss cls is nan', data.names[4], 'iteration ', 'a lower lr')
    assert line.count(', ') >= 3
    last = int(re.search(r'iteration (\d+)', line)[1]) - 1                 # the last whole iteration is kept
    assert [path.name for path in Path(config.out).glob('iter_*')] == ([f'iter_{last:06d}'] if last else [])


def test_nan_is_skipped(config, capsys):
    data = training_data(config)
    last = train(replace(config, nan='skip'), Poisoned(data, data.names[4]))
    text = capsys.readouterr().out
    assert 1 <= text.count('skipped: iteration') < 6 and data.names[4] in text
    assert all(weight.isfinite().all() for weight in load_file(last/'model.safetensors').values())
    assert all_numbers(config.out)


def test_nan_is_not_skipped_for_ever(config):
    data = training_data(config)
    run = replace(config, nan='skip', iterations=30)
    one_line(lambda: train(run, Poisoned(data, ' '.join(data.names))), 'iteration 11', 'number 11 in a row')


def test_a_rate_that_is_far_too_high(config):
    one_line(lambda: train(replace(config, lr=1e30, warmup=0, iterations=20)), 'is nan')


# odd batches

@pytest.mark.parametrize('case', [
    'untagged', 'one image', 'all ignored', 'all background', 'all one class', 'no roi', 'empty roi'])
def test_odd_batches_have_finite_losses_and_gradients(case, config):
    data = training_data(config)
    torch.manual_seed(0)
    model = build_model(config, build_text(config, data.classes)).train()
    item, n = data[0], 1 if case == 'one image' else 2
    image, tags, roi = item['image'].repeat(n, 1, 1, 1), item['tags'].repeat(n, 1), item['roi'].repeat(n, 1)
    if case == 'untagged': tags = torch.zeros_like(tags)
    if case == 'empty roi': roi = torch.zeros_like(roi)
    out = model(image, tags)
    pseudo = pseudo_labels(
        model, out.activations, image, tags, None if case == 'no roi' else roi, PAR(), (1.,), False)
    value = {'all ignored': IGNORE, 'all background': 0, 'all one class': 1}.get(case)
    if value is not None:
        labels = torch.full_like(pseudo.patch, value), torch.full_like(pseudo.pixel, value)
        pseudo = PseudoLabels(pseudo.image, pseudo.roi, *labels)
    terms = losses(out, tags, pseudo=pseudo)
    assert set(terms) == {'cls', 'inter', 'im', 'ex', 'ptc', 'seg', 'reg'}
    assert all(term.isfinite() for term in terms.values()), terms
    total_loss(terms).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_untagged_images_and_a_batch_of_one_train(config, tmp_path):
    images = sorted((Path(config.data)/'JPEGImages').iterdir())
    rows = [f'{path.name},{tags}' for path, tags in zip(images, ('', '', 'a', 'b;a'))]
    (tmp_path/'tags.csv').write_text('\n'.join(['image,tags', *rows, '']))
    run = replace(config, data=str(tmp_path/'tags.csv'), image_root=str(Path(config.data)/'JPEGImages'),
                  allow_untagged=True, batch_size=1, iterations=8)
    train(run)
    assert all_numbers(run.out)


# precision

def test_losses_that_stay_in_float32(config):
    "Under autocast the network computes in bfloat16, the losses and pseudo labels do not"
    data = training_data(config)
    torch.manual_seed(0)
    step = TrainStep(build_model(config, build_text(config, data.classes)), config)
    batch, kinds = torch.utils.data.default_collate([data[i] for i in range(3)]), set()
    attention = step.model.encoder.vit.blocks[0].attn
    attention.qkv.register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    step.par.register_forward_hook(lambda module, args, out: kinds.add(('par', out.dtype)))
    with torch.autocast('cpu', torch.bfloat16): terms, loss, seen = step(batch, Phase(True))
    assert kinds == {torch.bfloat16, ('par', torch.float32)}
    assert {term.dtype for term in terms.values()} == {torch.float32} == {loss.dtype}
    assert seen[0].dtype == torch.float32


def test_compiled_encoder_gives_the_same(config):
    few = replace(config, iterations=2, save_every=2, batch_size=2)
    plain, compiled = (load_file(train(replace(few, compile=value, out=f'{config.out}_{value}'))/'model.safetensors')
                       for value in (False, True))
    assert plain.keys() == compiled.keys()
    for name in plain: assert torch.allclose(plain[name], compiled[name], atol=4e-3)     # lr 0.001, two steps of Adam


def test_fp16_needs_a_gpu(config):
    if torch.cuda.is_available(): pytest.skip('there is a GPU')
    one_line(lambda: train(replace(config, precision='fp16')), 'precision', 'GPU')


# files

class Evil:
    def __reduce__(self): return os.system, ('echo owned > owned.txt',)


def test_pickled_code_is_not_run(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    torch.save({'weight': Evil()}, tmp_path/'evil.pth')
    (tmp_path/'evil.bin').write_bytes(pickle.dumps(Evil()))
    for name in ('evil.pth', 'evil.bin'):
        one_line(lambda: read_weights(tmp_path/name), name)
        one_line(lambda: train(replace(config, pretrained=str(tmp_path/name))), name)
        one_line(lambda: encode_text(('cat',), 'ViT-B-32', str(tmp_path/name)), name)
    assert not (tmp_path/'owned.txt').exists()


def test_a_checkpoint_is_data_only(config):
    last = train(replace(config, iterations=1))
    assert {path.suffix for path in last.iterdir()} == {'.safetensors', '.json'}


def other_name(about): about.update(names=[*about['names'][:-1], 'unicorn'])
def other_width(about): about['config'].update(width=1024)
def word_for_number(about): about['config'].update(lr='fast')
def unknown_setting(about): about['config'].update(surprise=1)


@pytest.mark.parametrize('change, words', [
    (other_name, 'unicorn'), (other_width, 'project_image.weight'), (word_for_number, 'lr'),
    (unknown_setting, 'surprise')])
def test_a_checkpoint_that_does_not_fit(change, words, config):
    run = replace(config, iterations=2, save_every=2)
    last = train(run)
    about = json.loads((last/'config.json').read_text())
    change(about)
    del about['fingerprint']
    (last/'config.json').write_text(json.dumps(about))
    if words == 'unicorn': one_line(lambda: train(run), 'unicorn')
    else: one_line(lambda: Checkpoint.load(last), words)


# watching

def test_dry_run_tells_the_plan_and_writes_nothing(shapes, tmp_path):
    out = ['--out', tmp_path/'run', '--dry-run']
    code, text, err = command('dalnet_train', '--data', shapes, '--preset', 'demo', *out)
    assert code == 0 and not (tmp_path/'run').exists(), (text, err)
    for words in ('18 images', '6 classes', 'million', 'GB', 'hours for 130 iterations', 'seg '):
        assert words in text, (text, err)
    assert 'nowhere' in error_of('dalnet_train', '--data', tmp_path/'nowhere', '--preset', 'demo', *out)
    no_text = ['--data', shapes, '--preset', 'demo', '--text', tmp_path/'none.npz', '--dry-run']
    assert 'none.npz' in error_of('dalnet_train', *no_text)


def test_panels_and_trackers(config):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train(replace(config, trackers='tensorboard', show_every=3, show_at=(1,)))
    assert panels(config) == ['iter_000001.png', 'iter_000003.png', 'iter_000006.png']
    events = EventAccumulator(str(Path(config.out)/'dalnet'), size_guidance=dict(images=0))
    events.Reload()
    assert [event.step for event in events.Scalars('cls')] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Images('panel')] == [1, 3, 6]
    assert abs(events.Scalars('total')[5].value - read_log(config.out)[5]['total']) < 1e-4


def test_panels_and_numbers_in_trackio(config, tmp_path):
    "Trackio reads its folder when it is imported, so a process of its own trains"
    pytest.importorskip('trackio')
    code = ('from dataclasses import replace; from dalnet.config import read_config; '
            f'from dalnet.training import train; config = read_config("{tmp_path}/run.toml"); '
            'train(replace(config, trackers="trackio", show_at=(1,)))')
    write_config(config, tmp_path/'run.toml')
    subprocess.run([sys.executable, '-c', code], check=True, env=os.environ | dict(TRACKIO_DIR=str(tmp_path/'tracked')))
    with closing(sqlite3.connect(tmp_path/'tracked/dalnet.db')) as base:
        lines = [json.loads(text) for text, in base.execute('select metrics from metrics order by step')]
    assert sum('cls' in line for line in lines) == 6 and len(list((tmp_path/'tracked').rglob('*.png'))) == 1


def test_a_tracker_that_is_not_there(config, monkeypatch):
    monkeypatch.setattr('dalnet.step.find_spec', lambda name: None)
    one_line(lambda: train(replace(config, trackers='tensorboard')), 'tensorboard is not installed', 'pip install')


def test_settings_as_a_file(shapes, tmp_path):
    file = tmp_path/'run.toml'
    code, text, _ = command('dalnet_train', '--preset', 'demo', '--data', shapes, '--iterations', 2, '--batch-size', 2,
                            '--out', tmp_path/'run', '--save-config', file)
    assert code == 0 and 'iterations = 2' in file.read_text() and not (tmp_path/'run').exists(), text
    code, text, err = command('dalnet_train', '--config', file, '--eval-split', 'none', '--save-every', 1, '--keep', 1)
    assert code == 0 and [path.name for path in (tmp_path/'run').glob('iter_*')] == ['iter_000002'], err
    file.write_text('preset = "demo"\niteratons = 3\n')
    assert 'iterations' in error_of('dalnet_train', '--config', file)


@pytest.mark.parametrize('accumulate', [2, 4])
def test_panels_of_a_step_in_parts(accumulate, config):
    train(replace(config, batch_size=4, accumulate=accumulate, show_at=(1, 3), iterations=3, save_every=3))
    assert len(list(Path(config.out).glob('panels/*.png'))) == 2


def test_damaged_checkpoints_do_not_crowd_out_new_ones(config):
    run = replace(config, save_every=1, keep=1)
    last = train(run)
    (last/'model.safetensors').write_bytes(b'torn')
    (Path(config.out)/'.part-1-log.jsonl').write_text('{')
    whole, text = Path(config.out)/'iter_000002', build_text(run, training_data(run).classes)
    model = build_model(run, text)
    Checkpoint.save(whole, model, run, build_text(run, model.names), 2)
    Checkpoint.prune(config.out, 1, whole)
    names = sorted(path.name for path in Path(config.out).iterdir())
    assert names == ['iter_000002', 'iter_000006', 'log.jsonl'] and Checkpoint.newest(config.out) == whole


def test_only_its_own_panels_go(shapes, tmp_path):
    "A folder called panels may be somebody's"
    (tmp_path/'panels').mkdir()
    for name in ('mine.png', 'iter_000001.png'): (tmp_path/f'panels/{name}').touch()
    train(replace(PRESETS['demo'], data=shapes, iterations=1, out=tmp_path))
    assert [path.name for path in (tmp_path/'panels').iterdir()] == ['mine.png']


def test_a_score_that_is_no_number_is_not_the_best(shapes, tmp_path):
    scores = iter([.5, float('nan'), .4])
    run = replace(PRESETS['demo'], data=shapes, iterations=3, score_every=1, seg_start=9, out=tmp_path)
    train(run, score=lambda model: next(scores))
    assert [path.name for path in tmp_path.glob('best_*')] == ['best_000001']
