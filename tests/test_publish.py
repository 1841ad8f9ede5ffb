"Published checkpoints: over the hub's protocol from a server on this machine, from zips, and back"
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pytest
import torch
import yaml
from dalnet.build import build_model
from dalnet.checkpoint import Checkpoint
from dalnet.config import PRESETS
from dalnet.core import InputError
from dalnet.inference import Predictor
from dalnet.model import DALNet
from dalnet.text import encode_text

COMMIT = '0123456789'*4
IMAGE = torch.rand(3, 48, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A checkpoint with an optimizer, as training leaves it"
    config = replace(PRESETS['demo'], encoder_options=dict(depth=1, patch_size=8, img_size=64), seg_start=1,
                     iterations=2, data='/home/me/shapes', pretrained='/home/me/vit.pth')
    torch.manual_seed(0)
    text = encode_text(['disc', 'ring'], model='hash')
    model = build_model(config, text, pretrained=False)
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    return Checkpoint.save(tmp_path_factory.mktemp('run')/'iter_000002', model, config, text, 2, optimizer)


@pytest.fixture
def hub(run, tmp_path):
    "A server that speaks as much of the hub's protocol as a download needs -> (address, paths that were asked for)"
    folder, asked = DALNet.from_pretrained(run).save_pretrained(tmp_path/'served', half=True), []
    (folder/'pytorch_model.bin').write_bytes(b'a pickle that nobody may fetch')
    names = sorted(path.name for path in folder.iterdir())

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_): pass

        def answer(self, body, **headers):
            self.send_response(200)
            for name, value in (headers | {'Content-Length': len(body)}).items():
                self.send_header(name.replace('_', '-'), str(value))
            self.end_headers()
            if self.command == 'GET': self.wfile.write(body)

        def do_GET(self):
            asked.append(self.path)
            name = self.path.split('?')[0].rpartition('/')[2]
            if self.path.startswith('/api/models/owner/shapes'):
                if '/tree/' in self.path:
                    sizes = {name: (folder/name).stat().st_size for name in names}
                    about = [dict(type='file', oid='0'*40, size=size, path=name) for name, size in sizes.items()]
                else:
                    about = dict(id='owner/shapes', sha=COMMIT, siblings=[dict(rfilename=name) for name in names])
                return self.answer(json.dumps(about).encode(), Content_Type='application/json')
            if not self.path.startswith('/owner/shapes/resolve/') or name not in names: return self.send_error(404)
            body = (folder/name).read_bytes()
            self.answer(body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=COMMIT)
        do_HEAD = do_GET

    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}', asked
    server.shutdown()


def fresh(code, **env):
    "Run code in a process with its own view of the hub"
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | env)


def test_a_repository_is_downloaded_then_read_without_a_network(hub, tmp_path):
    pytest.importorskip('huggingface_hub', reason='downloads with it')
    address, asked = hub
    code = 'from dalnet import Predictor; print(Predictor("owner/shapes@v1", scales=[1]).model.names)'
    env = dict(HF_ENDPOINT=address, HF_HUB_CACHE=str(tmp_path/'cache'), HF_HUB_OFFLINE='0', HF_HUB_DISABLE_XET='1',
               no_proxy='127.0.0.1')
    done = fresh(code, **env)
    assert done.returncode == 0, done.stderr
    assert "'disc', 'ring'" in done.stdout
    files = {path.split('?')[0].rpartition('/')[2] for path in asked if '/resolve/' in path}
    assert files == {'config.json', 'model.safetensors'}                 # neither the pickle nor the card
    assert any('/revision/v1' in path for path in asked)
    again = fresh(code, **env | dict(HF_HUB_OFFLINE='1'))
    assert again.returncode == 0 and again.stdout == done.stdout, again.stderr


def test_without_a_network_the_error_is_one_line():
    with pytest.raises(InputError, match='owner/nothing: no such folder .*HF_HUB_OFFLINE is set') as error:
        Predictor('owner/nothing')
    assert '\n' not in str(error.value)


def test_a_downloaded_config_passes_the_checks_of_every_checkpoint(run, tmp_path):
    folder = DALNet.from_pretrained(run).save_pretrained(tmp_path/'bad')
    about = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps(about | dict(iteration=9)))
    with pytest.raises(InputError, match='does not match its fingerprint'): DALNet.from_pretrained(folder)
    about['config']['encoder_options']['pretrained_cfg'] = dict(file='/etc/passwd')
    del about['fingerprint']
    (folder/'config.json').write_text(json.dumps(about))
    with pytest.raises(InputError, match='pretrained_cfg'): DALNet.from_pretrained(folder)


def test_the_command_writes_what_predictor_reads(run, tmp_path):
    from dalnet.publish import dalnet_publish
    (run.parent/'scores.json').write_text(json.dumps(
        dict(cam=dict(fixed_iou=[.5, .25, .75]), images=7, split='val')))
    target = tmp_path/'shapes.zip'
    dalnet_publish([str(run), '--half', '--out', str(target)])
    assert target.stat().st_size < .4*sum(path.stat().st_size for path in run.iterdir())
    masks = [Predictor(source)(IMAGE).mask for source in (run, target)]
    assert (masks[0] == masks[1]).float().mean() > .99
    with zipfile.ZipFile(target) as archive:
        names = [name.rpartition('/')[2] for name in archive.namelist()]
        assert names == ['README.md', 'config.json', 'model.safetensors']
        card = archive.read('shapes/README.md').decode()
    about = yaml.safe_load(card.split('---\n')[1])
    assert about['license'] == 'apache-2.0' and about['library_name'] == 'dalnet'
    assert about['pipeline_tag'] == 'image-segmentation'
    assert about['model-index'][0]['results'][0]['metrics'][0]['value'] == 50.
    assert '/home/me' not in card and 'Limits' in card and '@inproceedings' in card


def test_the_hubs_own_reader_accepts_the_card(run, tmp_path):
    cards = pytest.importorskip('huggingface_hub', reason='its reader of cards')
    folder = DALNet.from_pretrained(run).save_pretrained(
        tmp_path/'model', scores=dict(cam=dict(fixed_iou=[.5, .25]), images=7, split='val'))
    result, = cards.ModelCard.load(folder/'README.md').data.eval_results
    assert (result.task_type, result.metric_type, result.metric_value) == ('image-segmentation', 'mean_iou', 37.5)


def test_publishing_twice_changes_nothing_else(run, tmp_path):
    model = DALNet.from_pretrained(run)
    folder = model.save_pretrained(tmp_path/'model')
    (tmp_path/'model/notes.txt').write_text('mine')
    with pytest.raises(InputError, match='notes.txt'): model.save_pretrained(folder)
    again = DALNet.from_pretrained(folder).save_pretrained(tmp_path/'again')
    for name in ('config.json', 'model.safetensors'):
        assert (again/name).read_bytes() == (folder/name).read_bytes()
