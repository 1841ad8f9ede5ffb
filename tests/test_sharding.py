"Evaluation, prediction and pseudo labels on 1, 2 and 3 real processes: the same results, every image once"
import json, os, shutil, socket, subprocess, sys
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from dalnet.build import build_model
from dalnet.checkpoint import Checkpoint
from dalnet.config import PRESETS
from dalnet.voc import VOCDataset
from dalnet.text import encode_text

BIN = Path(sys.executable).parent
ONE_THREAD = dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')  # sums are bit for bit the same only with as many threads

SCRIPT = '''
import json, os, sys
from dataclasses import asdict
from pathlib import Path
import torch
import dalnet.inference as inference
import dalnet.label_files as label_files
from dalnet.core import InputError
from dalnet.voc import VOCDataset
from dalnet.checkpoint import Checkpoint
from dalnet.evaluation import evaluate_cams, evaluate_segmentation
from dalnet.processes import barrier, rank, world_size

class Logged:
    "The first n items of a dataset, and which of them this process read"
    def __init__(self, dataset, n, dies=None):
        self.dataset, self.n, self.read, self.dies, self.classes = dataset, n, [], dies, dataset.classes
    def __len__(self): return self.n
    def __getitem__(self, i):
        if rank() == self.dies: os._exit(7)
        if i >= self.n: raise IndexError(i)
        self.read.append(i)
        return self.dataset[i]

def error(f, *args, **kwargs):
    try: f(*args, **kwargs)
    except InputError as e: return str(e)

checkpoint, data, photos, out = sys.argv[1:]
out, model, val = Path(out), Checkpoint.load(checkpoint)[0], VOCDataset(data, 'val', masks=True)
same, own = {}, {}                                                      # what all must agree on, and what each did

sets = {name: Logged(val, n) for name, n in dict(all=len(val), two=2).items()}
for name, items in sets.items():
    scores = evaluate_cams(model, items, scales=(1., .5))
    same[f'cams {name}'] = {key: asdict(score) for key, score in scores.items()}
    own[f'cams {name}'], items.read = items.read, []
    same[f'seg {name}'] = asdict(evaluate_segmentation(model, items, scales=(1.,), flip=False, crf='lattice'))
    own[f'seg {name}'] = items.read
n = world_size()
assert n == int(os.environ['WORLD_SIZE'])

written = []
def logged(f, key):
    def logging(*args):
        written.append(key(args))
        return f(*args)
    return logging
label_files.write_prediction = logged(label_files.write_prediction, lambda args: args[0].name)
labeller = label_files._Labeller
labeller.__call__ = logged(labeller.__call__, lambda args: str(args[0].dataset.names[args[1]]))
def call(name, f, *args, **kwargs):
    written.clear()
    same[name] = f(*args, **kwargs)
    own[name] = list(written)

predictor = inference.Predictor(checkpoint, 'cpu', (1.,))
call('predict', label_files.predict_files, predictor, [photos], out/'masks')
barrier()
if rank() == 0:
    for path in sorted((out/'masks').glob('*.json'))[::2]: path.unlink()  # with two processes: all of one share
barrier()
call('predict the rest', label_files.predict_files, predictor, [photos], out/'masks')
call('predict nothing', label_files.predict_files, predictor, [photos], out/'masks')
call('predict two', label_files.predict_files, predictor, sorted(Path(photos).glob('*.jpg'))[-2:], out/'two')
pseudo = label_files.pseudo_label_files, checkpoint, out/'labels', data, 'val'
call('label', *pseudo, scales=(1.,), device='cpu')
same['other settings'] = error(*pseudo, scales=(1., .5), device='cpu')
barrier()
if rank() == 0:
    for path in sorted((out/'labels').glob('*.png'))[:3]: path.unlink()
barrier()
call('label the rest', *pseudo, scales=(1.,), device='cpu')
own['pool'] = n > 1 and error(*pseudo, scales=(1.,), device='cpu', processes=2)
untagged = VOCDataset(data, 'val', 'none', allow_untagged=True)
call('submit', lambda: label_files.write_submission(predictor, untagged, out/'submission.tar').name)
assert (out/'submission.tar').is_file()
own['lost'] = None
def save(): (out/f'process_{rank()}.json').write_text(json.dumps([same, own]).replace(str(out), 'OUT'))
save()
if n == 3:
    own['lost'] = error(evaluate_cams, model, Logged(val, 3, dies=2), scales=(1.,))
    save()
    os._exit(0)                                                         # no farewell to a process that is gone
'''


@pytest.fixture(scope='module')
def material(shapes, tmp_path_factory):
    "A checkpoint with random heads, a dataset with a broken training image, and a folder of eight pictures, one broken"
    root = tmp_path_factory.mktemp('sharding')
    data = shutil.copytree(shapes, root/'data')
    pictures = sorted((data/'JPEGImages').iterdir())
    (data/'ImageSets/Segmentation/val.txt').write_text(''.join(f'{path.stem}\n' for path in pictures[:7]))
    (root/'photos').mkdir()
    for path in pictures[:8]: shutil.copy(path, root/'photos')
    (root/'photos'/pictures[3].name).write_bytes(pictures[3].read_bytes()[:900])
    torch.manual_seed(0)
    config, text = replace(PRESETS['demo'], data=str(data)), encode_text(VOCDataset(data, 'val').classes, model='hash')
    model = build_model(config, text)
    for p in model.parameters():
        if p.ndim == 4: torch.nn.init.normal_(p, std=.3)
    (root/'script.py').write_text(SCRIPT)
    return root, Checkpoint.save(root/'iter_000100', model, config, text, 100), data, pictures


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def launch(n, material, out):
    "Start n processes of the script as torchrun would; what each printed"
    root, checkpoint, data, _ = material
    group = dict(WORLD_SIZE=f'{n}', LOCAL_WORLD_SIZE=f'{n}', MASTER_ADDR='127.0.0.1', MASTER_PORT=f'{free_port()}')
    copies = []
    for rank in range(n):
        env = os.environ | ONE_THREAD | group | dict(RANK=f'{rank}', LOCAL_RANK=f'{rank}')
        command = [sys.executable, root/'script.py', checkpoint, data, root/'photos', out]
        copies.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    try: said = [process.communicate(timeout=300)[0] for process in copies]
    finally:
        for process in copies: process.kill()
    assert [process.returncode for process in copies] == ([0, 0, 7] if n == 3 else [0]*n), '\n'.join(said)


@pytest.fixture(scope='module')
def runs(material):
    "Number of processes -> folder with results, what all of them returned, and what each did"
    results = {}
    for n in (1, 2, 3):
        out = material[0]/f'{n}'
        out.mkdir()
        launch(n, material, out)
        texts = [json.loads((out/f'process_{rank}.json').read_text()) for rank in range(n)]
        results[n] = out, [json.dumps(same) for same, _ in texts], [own for _, own in texts]
    return results


def files(folder):
    "Path in a folder -> bytes, of all results"
    paths = [path for path in folder.rglob('*') if path.is_file() and not path.name.startswith('process_')]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_every_process_returns_what_one_alone_returns(runs):
    alone = runs[1][1][0]
    for n, (_, returned, _) in runs.items():
        assert returned == [alone]*n                                    # every IoU at every threshold, counts, failures
    scores = json.loads(alone)
    assert len(set(scores['seg all']['iou']['single'])) > 2                # no trivial masks
    assert 0 < scores['cams all']['cam']['sweep']['0.3'] < 1


def test_every_image_is_read_and_written_once(runs, material):
    _, _, _, pictures = material
    names = [path.stem for path in pictures[:7]]
    photos = [path.name for i, path in enumerate(pictures[:8]) if i != 3]
    expected = {
        'cams all': list(range(7)), 'seg all': list(range(7)), 'cams two': [0, 1], 'seg two': [0, 1],
        'predict': photos, 'predict the rest': photos[::2], 'predict nothing': [], 'predict two': photos[-2:],
        'label': names, 'label the rest': names[:3]}
    for n, (_, _, did) in runs.items():
        for key, items in expected.items():
            assert sorted(item for own in did for item in own[key]) == items, (n, key)
            if 'the rest' in key:                                          # dealt out again, evenly
                assert max(len(own[key]) for own in did) == -(-len(items)//n), (n, key)


def test_the_files_are_the_same_to_the_byte(runs, material):
    alone = files(runs[1][0])
    masks = [data for name, data in alone.items() if name.endswith('.png')]
    assert len(masks) == 7 + 2 + 7 and len(set(masks)) > 3
    for n in (2, 3): assert files(runs[n][0]) == alone


def test_failures_and_mistakes_are_said_once(runs, material):
    _, _, _, pictures = material
    for n, (_, returned, did) in runs.items():
        same = json.loads(returned[0])
        labelled, before, failures = same['predict']
        assert (labelled, before, len(failures)) == (7, 0, 1) and pictures[3].name in failures[0]
        assert same['predict the rest'][:2] == [4, 3] and same['predict nothing'][:2] == [0, 7]
        assert same['predict two'] == [2, 0, []]
        assert same['label'] == [7, 0, []] and same['label the rest'] == [3, 4, []]
        assert 'other settings' in same['other settings']
        if n > 1: assert all(f'a launcher has started {n} already' in own['pool'] for own in did)
    lost = [own['lost'] for own in runs[3][2]]
    assert all('another process has died' in line and '\n' not in line for line in lost[:2]) and lost[2] is None


def test_the_command_under_torchrun_writes_the_scores_of_one_process(runs, material, tmp_path):
    _, checkpoint, data, _ = material
    command = [
        BIN/'torchrun', '--standalone', '--nproc-per-node', '2', BIN/'dalnet_eval', checkpoint, '--cam-scales', '1,0.5',
        '--scales', '1', '--flip', 'true', '--what', 'cams', '--out', tmp_path/'s.json']
    done = subprocess.run(command, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path/'s.json').read_text())
    assert scores['cam']['sweep'] == json.loads(runs[1][1][0])['cams all']['cam']['sweep']
