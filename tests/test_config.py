"Settings that are wrong in every way, and files of settings as people, editors and accidents leave them"
import json
import math
import os
import random
import stat
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
import numpy as np
import pytest
import tomlkit
from dalnet.build import build_model, build_text, open_data
from dalnet.checkpoint import Checkpoint, has_segmentation
from dalnet.config import FREE, PRESETS, config_from, config_toml, differences, read_config, write_config
from dalnet.core import InputError
from dalnet.settings import TrainConfig, setting_docs
from dalnet.transforms import EvalTransform

KINDS = {kind: [f.name for f in fields(TrainConfig) if f.type is kind] for kind in (bool, int, float, str, tuple, dict)}
WRONG = {
    bool: [0, 1, 'true', None, 1., [], np.True_],
    int: [True, 1., '1', None, [1], math.inf, 1j, 2**63, 16**5000],
    float: [True, '1', None, [1.], math.inf, -math.inf, math.nan, 10**400, Decimal(1), 1j, np.float32('nan')],
    str: [1, True, None, b'a', ['a'], 'a\0b'],
    tuple: ['1,2', 1, None, {1}, ['1'], [True], [math.nan], [None], [[1]], np.ones(2)],
    dict: ['{}', [], None, 1, {1: 'a'}, dict(a=None), dict(a=math.nan), dict(a={1}), dict(a=[None]), dict(a={2: 3}),
           dict(a='\0'), dict(a=16**5000)]}


def error(f, *words):
    "The one line that `f` is refused with; `words` are in it"
    with pytest.raises(InputError) as e: f()
    line = str(e.value)
    assert line and '\n' not in line and '\r' not in line and len(line) < 700, line
    for word in words: assert str(word) in line, line
    return line


def file_error(path, content, *words):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return error(lambda: read_config(path), path.name, *words)


# types

def test_every_field_has_a_known_kind():
    assert sorted(sum(KINDS.values(), [])) == sorted(f.name for f in fields(TrainConfig))
    docs = setting_docs()
    assert not [f.name for f in fields(TrainConfig) if not docs[f.name]]


@pytest.mark.parametrize('kind', KINDS)
def test_wrong_types(kind):
    for name in KINDS[kind]:
        for value in WRONG[kind]:
            error(lambda: TrainConfig(**{name: value}), f'setting {name}: must be ', '; got ')


def test_numbers_too_large():
    large = dict(seed=2**63, iterations=16**5000, lr=16**5000, show_at=[2**64], encoder_options=dict(a=2**63))
    for name, value in large.items():
        error(lambda: TrainConfig(**{name: value}), f'setting {name}: must be ', 'at most 64 bits; got ')
    assert TrainConfig(seed=2**63 - 1).seed == 2**63 - 1


def test_an_endless_table_is_refused():
    loop = {}
    loop['a'] = loop
    error(lambda: TrainConfig(encoder_options=loop), 'setting encoder_options')


def test_conversions_that_lose_nothing():
    config = TrainConfig(lr=np.float32(.5), iterations=np.int64(7), weight_im=1, test_scales=[1, np.float64(.5)],
                         show_at=[np.int32(3)], data=Path('a')/'b', tau=Fraction(1, 4),
                         encoder_options=dict(img_size=(8, 8)))
    wanted = dict(lr=.5, iterations=7, weight_im=1., test_scales=(1., .5), show_at=(3,), data=os.path.join('a', 'b'),
                  tau=.25, encoder_options=dict(img_size=[8, 8]))
    assert asdict(config) | wanted == asdict(config)
    kinds = dict(lr=float, iterations=int, weight_im=float, tau=float, data=str)
    for name, kind in kinds.items(): assert type(getattr(config, name)) is kind, name
    assert [type(number) for number in config.test_scales + config.show_at] == [float, float, int]
    json.dumps(asdict(config))


def test_settings_share_nothing():
    options = dict(depth=2, inner=[1])
    a = TrainConfig(encoder_options=options)
    b = replace(a)
    options['inner'].append(2), a.encoder_options['inner'].append(3)
    assert (a.encoder_options['inner'], b.encoder_options['inner']) == ([1, 3], [1])


# ranges and contradictions

AT_LEAST_ONE = """iterations batch_size crop global_views local_size width seg_width seg_dilation save_every
    log_every keep accumulate timeout lr tau scale_min power head_lr_ratio""".split()
AT_LEAST_ZERO = """warmup seed long_side seg_start ptc_start pseudo_switch cam_threshold local_crops score_every
    show_every lam weight_cls weight_local weight_decay warmup_lr jitter blur beta low teacher_momentum""".split()


@pytest.mark.parametrize('name,value', [
    *[(name, 0) for name in AT_LEAST_ONE], *[(name, -1) for name in AT_LEAST_ZERO],
    ('seed', 2**63), ('workers', -2), ('cam_threshold', 1.1), ('beta', 1.1), ('blur', 2), ('jitter', 2.1),
    ('pseudo_scales', ()), ('test_scales', (1, 0)), ('show_at', (0,)), ('show_at', (1.5,)),
    ('encoder', ''), ('out', ' '), ('text', ''), ('pretrained', ''),
    ('pool', 'max'), ('similarity', 'Map'), ('tag_reduce', ''), ('augment', 'none'), ('precision', 'fp8'),
    ('text_projection', 'frozen'), ('negatives', 'all'), ('map_source', 'inter'), ('pseudo_source', 'text'),
    ('local_outside', ''), ('fuse', 'max'), ('thresholds', 'otsu'), ('pseudo_form', 'both'), ('teacher_momentum', 1.1),
    ('nan', 'ignore'), ('device', 'tpu'), ('trackers', 'tensorboard,'), ('trackers', 'mlflow')])
def test_ranges(name, value):
    error(lambda: TrainConfig(**{name: value}), f'setting {name}: must be ', '; got ')


@pytest.mark.parametrize('name,wrong,fixed', [
    ('scale_max', dict(scale_min=3), dict(scale_max=3)),
    ('high', dict(high=.2, low=.3), dict(low=.2)),
    ('warmup_lr', dict(lr=1e-7), dict(warmup=0)),
    ('accumulate', dict(batch_size=8, accumulate=3), dict(accumulate=2)),
    ('accumulate', dict(batch_size=4, accumulate=8), dict(accumulate=4)),
    ('accumulate', dict(accumulate=2**62), dict(accumulate=1)),
    ('local_size', dict(local_crops=1, local_size=500), dict(local_crops=0)),
    ('prompts', dict(prompts=dict(a='b'), text='a.npz'), dict(text='hash')),
    ('prompts', dict(prompts=dict(a=3)), dict(prompts=dict(a='3'))),
    ('prompts', dict(prompts=dict(a=' ')), dict(prompts={})),
    ('encoder_options', dict(encoder_options=dict(seed=1)), dict(encoder_options={}))])
def test_contradictions_and_what_fixes_them(name, wrong, fixed):
    error(lambda: TrainConfig(**wrong), f'setting {name}: must be ', '; got ')
    TrainConfig(**wrong | fixed)


def test_nothing_to_learn():
    nothing = {f'weight_{k}': 0 for k in ('cls', 'inter', 'im', 'ex', 'ptc', 'seg', 'reg')}
    error(lambda: TrainConfig(**nothing, local_crops=0), 'nothing to learn')
    TrainConfig(**nothing, local_crops=1)
    error(lambda: TrainConfig(**nothing, local_crops=1, weight_local=0), 'nothing to learn')


def test_tiny_and_pointless_runs_are_allowed():
    for preset in PRESETS.values(): replace(preset, iterations=1, batch_size=1, workers=0)
    TrainConfig(iterations=2, warmup=1500, seg_start=60, show_at=(900,), weight_local=5, local_crops=0, local_size=999,
                high=.5, low=.5, scale_min=1, scale_max=1, trackers='wandb, tensorboard')


# names

def test_unknown_names():
    misspelt = dict(bacth_size=4)
    error(lambda: config_from(misspelt, 'a.toml'), 'a.toml: setting bacth_size: unknown; did you mean batch_size?')
    error(lambda: config_from({'batch-size': 4}), 'batch_size?')
    error(lambda: config_from(dict(learning_rate=1)), 'did you mean lr?')
    error(lambda: config_from(dict(Iterations=1, lam_=2)), 'settings Iterations, lam_', 'did you mean iterations, lam?')
    error(lambda: config_from(dict(zzzqqq=1)), 'setting zzzqqq: unknown', '--help')
    error(lambda: config_from(dict(presets='demo')), 'did you mean preset?')
    many = {f'k{i}': 0 for i in range(1000)}
    error(lambda: config_from({'a\nb': 1, 5: 2, 'x'*10000: 3} | many), 'unknown', ', ...')
    error(lambda: config_from({'weights': 1, '__class__': 2, '__post_init__': 3}), 'unknown')


@pytest.mark.parametrize('preset', ['voc', '', 5, ['demo'], dict(demo=1), True])
def test_unknown_preset(preset):
    error(lambda: config_from(dict(preset=preset), 'a.toml'), 'a.toml: setting preset: must be one of voc_vit_b, ')


@pytest.mark.parametrize('values', [None, 5, 'lr', ['lr'], [('lr', 1)]])
def test_no_mapping(values):
    error(lambda: config_from(values, 'config.json'), 'config.json: settings must be names with values; got ')


NEWER = ('keep', 'nan', 'timeout', 'trackers', 'accumulate')  # settings that came later


def test_older_and_later_settings():
    old = {name: value for name, value in asdict(PRESETS['voc_mini']).items() if name not in NEWER}
    assert config_from(json.loads(json.dumps(old))) == PRESETS['voc_mini']
    error(lambda: config_from(old | dict(of_tomorrow=1), 'config.json'), 'config.json: setting of_tomorrow')


def test_an_old_checkpoint_loads(tmp_path):
    "Its config.json has neither the newer settings nor fingerprints"
    config = replace(PRESETS['demo'], encoder_options=dict(depth=3, patch_size=16, img_size=32), seg_width=8)
    text = build_text(config, ('cat', 'dog'))
    folder = Checkpoint.save(tmp_path/'iter_000001', build_model(config, text), config, text, 1)
    about = json.loads((folder/'config.json').read_text())
    for name in NEWER: del about['config'][name]
    del about['files'], about['fingerprint']
    (folder/'config.json').write_text(json.dumps(about))
    model, loaded = Checkpoint.load(folder)
    assert loaded == replace(config, trackers='') and model.names == ('cat', 'dog')
    assert Checkpoint.newest(tmp_path) == folder and Checkpoint.iteration(folder) == 1 and not has_segmentation(folder)


def test_encoder_options_follow_the_encoder():
    mini = PRESETS['voc_mini']
    shallow = config_from(dict(preset='voc_mini', encoder_options=dict(depth=2)))
    assert shallow.encoder_options == mini.encoder_options | dict(depth=2)
    assert config_from(dict(encoder='vit_tiny_patch16_224'), base=mini).encoder_options == {}
    named = config_from(dict(encoder=mini.encoder, encoder_options=dict(depth=2)), base=mini)
    assert named.encoder_options == dict(depth=2)
    assert mini.encoder_options['depth'] == 4
    error(lambda: config_from(dict(preset='voc_mini', encoder_options='{}'), 'a'), 'a: setting encoder_options')


# files

def test_presets_round_trip(tmp_path):
    for name, config in PRESETS.items():
        write_config(config, tmp_path/'new'/f'{name}.toml')
        for base in (None, *PRESETS.values()):
            back = read_config(tmp_path/'new'/f'{name}.toml', base)
            assert back == config and repr(back) == repr(config)
    assert sorted(path.name for path in (tmp_path/'new').iterdir()) == sorted(f'{name}.toml' for name in PRESETS)


LETTERS = ['a', 'Z', '7', ' ', '"', "'", '\\', '\n', '\r', '\t', '\x01', '\x7f', '\x85', '\u2028', 'é', '油', '😀',
           '#', '=', '[', ']', '{', '}', '.', ',', '"""', "'''", '\ufeff']
NUMBERS = [1e-6, .1, 1e22, 5e-324, 1/3, 1e16, -0.0, 1.7976931348623157e308]


def any_text(rng): return ''.join(rng.choice(LETTERS) for _ in range(rng.randrange(8)))


def any_value(rng, depth=0):
    "A random value of a table of settings"
    kind = rng.randrange(6 if depth < 3 else 4)
    if kind == 4: return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 5: return {any_text(rng): any_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return [any_text(rng), rng.choice(NUMBERS), rng.randrange(-2**63, 2**63), rng.random() < .5][kind]


def test_anything_round_trips(tmp_path):
    rng = random.Random(0)
    for _ in range(300):
        config = TrainConfig(
            data=any_text(rng), image_root=any_text(rng),
            prompts={any_text(rng): 'x' + any_text(rng) for _ in range(3)},
            encoder_options={'_' + any_text(rng): any_value(rng) for _ in range(3)},
            lr=rng.random() + 1e-5, lam=abs(rng.choice(NUMBERS)), seed=rng.randrange(2**63), resume=rng.random() < .5,
            test_scales=tuple(rng.random() + .01 for _ in range(rng.randrange(1, 5))),
            show_at=tuple(rng.randrange(1, 99) for _ in range(rng.randrange(3))))
        write_config(config, tmp_path/'a.toml')
        back = read_config(tmp_path/'a.toml')
        assert back == config
        as_text = json.dumps(asdict(back), sort_keys=True)  # which tells -0.0 from 0.0 and 1 from 1.0
        assert as_text == json.dumps(asdict(config), sort_keys=True)


def test_a_written_file_teaches_its_reader(tmp_path):
    text, docs = config_toml(PRESETS['voc_mini']), setting_docs()
    for f in fields(TrainConfig): assert f'# {docs[f.name]}\n' in text, f.name
    assert 'iterations = 1200 # optimisation steps\n' in text and tomlkit.parse(text).unwrap()['iterations'] == 1200


def test_differences_from_a_preset(tmp_path):
    path = tmp_path/'mine.toml'
    path.write_text('preset = "voc_mini"\ndata = "a"\nlr = 1\n'
                    'prompts."wine glass" = "glass"\nencoder_options.depth = 2\n')
    config = read_config(path, base=PRESETS['demo'])
    mini = PRESETS['voc_mini']
    assert config == replace(mini, data='a', lr=1., prompts={'wine glass': 'glass'},
                             encoder_options=mini.encoder_options | dict(depth=2))
    path.write_text('data = "a"')
    assert read_config(path, base=PRESETS['demo']) == replace(PRESETS['demo'], data='a')
    path.write_text('')
    assert read_config(path) == TrainConfig()


def test_paths_are_left_as_they_are(tmp_path, monkeypatch):
    (tmp_path/'sub').mkdir()
    (tmp_path/'sub/a.toml').write_text('data = "photos"\nout = "~/run"\nimage_root = "$HOME"\n')
    monkeypatch.chdir(tmp_path)
    config = read_config('sub/a.toml')
    assert (config.data, config.out, config.image_root) == ('photos', '~/run', '$HOME')


@pytest.mark.parametrize('content', [
    b'\xef\xbb\xbflr = 1e-4\n# a\nseed = 3', b'lr = 1e-4\r\nseed = 3\r\n',
    b'\xef\xbb\xbf# \xc3\xa9\r\nlr=1e-4\r\nseed=3', b'lr = 0.000_1\nseed = 0x3\n', b'"lr" = 1e-4\n\'seed\' = 3'])
def test_editors(tmp_path, content):
    (tmp_path/'a.toml').write_bytes(content)
    assert read_config(tmp_path/'a.toml') == TrainConfig(lr=1e-4, seed=3)


@pytest.mark.parametrize('content,words', [
    ('lr = 1\nlr = 2\n', ('line 2',)),
    ('[prompts]\na="b"\n[prompts]\nc="d"', ('line 3',)),
    ('prompts = {}\n[prompts]\na="b"', ('line 2',)),
    ('lr: 1', ('line 1',)),
    ('lr', ('not TOML',)),
    ('lr =', ('not TOML',)),
    ('data = VOC', ('line 1', 'quotes')),
    ('cross = True', ('line 1',)),
    ('\n\ndata = "a', ('not TOML',)),
    ('data = "a\nb"', ('line 1',)),
    ('lr = 1 seed = 2', ('line 1',)),
    ('lr = 1e', ('line 1',)),
    ('{"lr": 1}', ('line 1',)),
    ('data = "\\q"', ('not TOML',)),
    ('lr = null', ('line 1',)),
    ('data = "\\ud800"', ('not TOML',)),
    ('data = "\\u0000"', ('setting data',)),
    ('lr = inf', ('setting lr', 'finite')),
    ('lr = -nan', ('setting lr',)),
    ('seed = 1.0', ('setting seed',)),
    ('cross = 1', ('setting cross',)),
    ('lr = "1e-4"', ('setting lr',)),
    ('split = 2012-01-01', ('setting split',)),
    ('split = 2012-01-01T00:00:00Z', ('setting split',)),
    ('timeout = 10:00:00', ('setting timeout',)),
    ('test_scales = 1', ('setting test_scales',)),
    ('test_scales = ["1"]', ('setting test_scales',)),
    ('[lr]\na = 1', ('setting lr',)),
    ('[[prompts]]\na = "b"', ('setting prompts',)),
    ('[training]\nlr = 1', ('training', 'unknown')),
    ('[prompts]\nmouse = "a mouse"\nlr = 1', ("'lr'", 'above the first [table]')),
    ('[encoder_options]\ndepth = 2\nlr = 1', ("'lr'", 'above the first [table]')),
    ('encoder_options = {depth = {a = inf}}', ('setting encoder_options',)),
    ('encoder_options.since = 2012-01-01', ('setting encoder_options',)),
    ('preset = "demo"\npreset = "demo"\n', ('line 2',)),
    ('preset = "nope"', ('preset', 'voc_mini')),
    ('batch_size = 8\naccumulate = 3', ('setting accumulate',)),
    ('import os\nos.system("true")', ('line 1',)),
    ('data = """\n!!python/object/apply:os.system\n"""\nlr = "x"', ('setting lr',))])
def test_wrong_files(tmp_path, content, words):
    file_error(tmp_path/'mine.toml', content, *words)


JUNK = [
    b'lr = 1\x00', b'\x00'*1000, b'\x89PNG\r\n\x1a\n' + bytes(range(256))*4, b'PK\x03\x04' + b'\x00\xff'*100,
    'lr = 1'.encode('utf-16'), 'lr = 1'.encode('utf-32'), '# é\nlr = 1'.encode('latin-1'), b'lr = 1\n# \xff',
    b'a = ' + b'['*100_000, b'a = ' + b'{a = '*10_000, b'a' + b'.a'*100_000 + b' = 1', b'[' + b'a.'*100_000 + b'a]',
    b'[encoder_options]\na' + b'.a'*900 + b' = 1', b'lr' + b'.a'*900 + b' = 1',
    b'seed = 0x' + b'f'*10_000, b'lr = 0x' + b'f'*10_000, b'lr = ' + b'9'*10_000, b'seed = ' + b'9'*4000,
    b'lr = 1e999', b'encoder_options.a = 0x' + b'f'*10_000 + b'\nlr = ""',
    b'x' * 100_000, b'"' + b'x'*100_000 + b'" = 1', b'data = "' + b'x'*100_000 + b'"\nlr = ""',
    b'pool = "' + b'x'*100_000 + b'"', b'pool = "a\\nb\\r\\u2028"', b''.join(b'k%d = 1\n' % i for i in range(50_000))]


@pytest.mark.parametrize('content', JUNK, ids=range(len(JUNK)))
def test_junk(tmp_path, content):
    start = time.perf_counter()
    file_error(tmp_path/'mine.toml', content)
    assert time.perf_counter() - start < 20


def test_large_files(tmp_path):
    file_error(tmp_path/'mine.toml', b'# much ado\n'*1_000_000, 'more than the 1,048,576 that are read')
    file_error(tmp_path/'mine.toml', random.Random(0).randbytes(10_000_000), 'more than the')
    names = {f'class {i}': f'words of class {i}' for i in range(2000)}  # a long list of prompts is not too large
    write_config(replace(TrainConfig(), prompts=names), tmp_path/'many.toml')
    assert read_config(tmp_path/'many.toml').prompts == names
    if Path('/dev/zero').exists(): error(lambda: read_config('/dev/zero'), '/dev/zero: cannot be opened (a device')


def test_files_that_are_not_settings(tmp_path):
    error(lambda: read_config(tmp_path/'none.toml'), 'none.toml: file not found')
    error(lambda: read_config(tmp_path), tmp_path, 'cannot be opened')
    error(lambda: read_config('x'*5000), 'cannot be opened')
    error(lambda: read_config('a\0b'), 'cannot be opened')
    (tmp_path/'loop').symlink_to(tmp_path/'loop')
    error(lambda: read_config(tmp_path/'loop'), 'cannot be opened')
    file_error(tmp_path/'two\nlines.toml'.replace('\n', '_'), 'lr = ""', 'two_lines.toml')
    (tmp_path/'two\nlines.toml').write_text('lr = ""')
    error(lambda: read_config(tmp_path/'two\nlines.toml'), 'two lines.toml: setting lr')


def test_names_that_are_not_text(tmp_path):
    error(lambda: write_config(TrainConfig(data=os.fsdecode(b'photos\xff')), tmp_path/'a.toml'), 'a.toml', 'UTF-8')
    assert not list(tmp_path.iterdir())


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path/'a.toml'
    write_config(PRESETS['demo'], path)
    def full(self, data):
        with open(self, 'wb') as f: f.write(data[:100])
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError): write_config(PRESETS['voc_mini'], path)
    assert read_config(path) == PRESETS['demo'] and [found.name for found in tmp_path.iterdir()] == ['a.toml']


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='the superuser may read everything')
def test_no_permission(tmp_path):
    write_config(PRESETS['demo'], tmp_path/'a.toml')
    (tmp_path/'a.toml').chmod(stat.S_IWUSR)
    error(lambda: read_config(tmp_path/'a.toml'), 'a.toml', 'Permission denied')


def test_reading_runs_nothing(tmp_path, monkeypatch):
    (tmp_path/'evil.py').write_text('raise SystemExit("imported")')
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path/'a.toml'
    path.write_text('encoder = "evil"\ntext = "evil.py"\ndata = "evil:run"\npretrained = "package:evil"\n'
                    'out = "$(touch x)"\n[encoder_options]\n__reduce__ = "evil"\n"__import__(\'evil\')" = 1\n')
    read_config(path)
    assert 'evil' not in sys.modules
    assert sorted(found.name for found in tmp_path.iterdir()) == ['a.toml', 'evil.py']


def test_settings_load_little():
    "Reading settings needs neither networks nor datasets"
    code = 'import sys, dalnet.config; print([name for name in sys.argv[1:] if name in sys.modules])'
    heavy = ['torchvision', 'timm', 'pyarrow', 'accelerate', 'open_clip', 'matplotlib', 'scipy']
    found = subprocess.run([sys.executable, '-c', code, *heavy], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == '[]'


# resuming, and opening

def other_value(config, setting):
    "A value that a setting of this type may have, and does not have there"
    value = getattr(config, setting.name)
    if setting.type is bool: return not value
    if setting.type is int: return value + 1
    if setting.type is float: return value*.5 + .01
    return {str: 'other', tuple: (3,), dict: dict(other='x')}[setting.type]


def test_free_settings():
    names = {f.name for f in fields(TrainConfig)}
    assert len(set(FREE)) == len(FREE) and set(FREE) < names
    chosen = dict(pool='maps', similarity='clamp', tag_reduce='mean', augment='dino', precision='bf16', nan='skip',
                  device='cpu', trackers='wandb', accumulate=2, warmup_lr=1e-7, flip_merge='sum',
                  text_projection='learnt', negatives='classes', map_source='both', pseudo_source='inter',
                  local_outside='background', fuse='max_logit', method='toco', thresholds='searched',
                  pseudo_form='soft')
    base = TrainConfig(region_folder='regions')
    for setting in fields(TrainConfig):
        changed = replace(base, **{setting.name: chosen.get(setting.name, other_value(base, setting))})
        assert changed != base, setting.name
        found = [] if setting.name in FREE else [setting.name]
        assert differences(base, changed) == differences(changed, base) == found, setting.name


def test_open_data(shapes, tmp_path):
    config = TrainConfig(data=shapes, mask_folder='nowhere', skip_bad=True)
    train, val = open_data(config), open_data(config, EvalTransform(48), part='val')
    assert (train.split, val.split) == ('train', 'val') and 'mask' in val[0] and 'mask' not in train[0]
    assert max(val[0]['image'].shape[-2:]) == 48
    assert open_data(replace(config, split='val')).split == 'val'
    assert open_data(replace(config, split='train'), part='val').split == 'val'
    moved = replace(config, data='moved', tags='none.npy', image_root='none', sbd='none', split='none')
    assert open_data(moved, data=shapes).names == train.names  # other data, other tags and folders
    unchanged = open_data(config, part='val', split=None, tags=None, classes=None)
    assert unchanged.names == val.names  # None: as in the settings
    error(lambda: open_data(moved), 'moved')
    error(lambda: open_data(TrainConfig()), 'setting data')
    own = replace(config, data=tmp_path/'tags.csv', image_root=shapes/'JPEGImages', mask_folder='')
    tagged = [f'{name}.jpg,{";".join(train.classes)}\n' for name in train.names[1:3]]
    (tmp_path/'tags.csv').write_text(f'image,tags\n{train.names[0]}.jpg,\n' + ''.join(tagged))
    assert len(open_data(replace(own, allow_untagged=True))) == 3 and len(open_data(own)) == 2
    error(lambda: open_data(own, part='val'), 'masks')
    masked = open_data(own, part='val', allow_untagged=None, mask_folder=shapes/'SegmentationClass')
    assert 'mask' in masked[0]
