"Exported graphs: equal to PyTorch at any size, complete in themselves, and usable where there is no PyTorch"
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from dalnet.build import build_model
from dalnet.config import PRESETS
from dalnet.core import InputError
from dalnet.text import encode_text
pytest.importorskip('onnx', reason="pip install 'dalnet[export]'")
pytest.importorskip('onnxscript', reason="pip install 'dalnet[export]'")
pytest.importorskip('onnxruntime', reason="pip install 'dalnet[export]'")
from dalnet.export import ExportNet, OnnxNet, export_onnx, export_torch, traced

ROOT = Path(__file__).parents[1]
SIZES = (1, 64, 64), (3, 40, 104), (2, 61, 33), (1, 224, 160), (2, 96, 96)  # batch, height, width; 96 is its own size
KINDS = dict(
    vit_tiny=dict(preset='demo', encoder_options=dict(depth=2, patch_size=8, img_size=96)),
    hybrid=dict(preset='voc_mini', encoder_options=dict(depth=2, dim=64, heads=2, img_size=96, final_norm=False)),
    registers=dict(preset='demo', encoder='vit_tiny_patch16_224', encoder_options=dict(
        depth=2, patch_size=16, img_size=96, reg_tokens=2, no_embed_class=True)))


@pytest.fixture(scope='module', params=KINDS)
def pair(request, tmp_path_factory):
    "A network and its ONNX file"
    options = dict(KINDS[request.param])
    config = replace(PRESETS[options.pop('preset')], pretrained='none', **options)
    torch.manual_seed(0)
    model = build_model(config, encode_text(['disc', 'ring', 'star'], model='hash')).eval()
    path = tmp_path_factory.mktemp('export')/f'{request.param}.onnx'
    export_onnx(model, path)
    return model, path


def images():
    for batch, height, width in SIZES:
        yield torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


def test_onnxruntime_equals_pytorch_at_any_size(pair):
    model, path = pair
    net, graph = ExportNet(model), OnnxNet(path, threads=1)
    assert graph.outputs == ('segmentation', 'cam', 'tags')
    for image in images():
        for name, a, b in zip(graph.outputs, graph(image), net(image)):
            assert a.shape == b.shape, name
            assert (a - b).abs().max() < 1e-4, (name, image.shape)


def test_the_graph_is_what_the_network_computes(pair):
    model, _ = pair
    image = torch.rand(2, 3, 96, 64)
    out, (segmentation, _, tags) = model.infer(image), ExportNet(model)(image)
    enlarged = torch.nn.functional.interpolate(out.seg, (96, 64), mode='bilinear', align_corners=False)
    assert torch.allclose(segmentation, enlarged.softmax(1), atol=1e-5)
    assert torch.allclose(tags, out.logits.sigmoid(), atol=1e-5)


def test_the_file_says_what_it_is(pair):
    model, path = pair
    about = OnnxNet(path, threads=1).about
    assert json.loads(about['classes']) == ['disc', 'ring', 'star']
    assert int(about['patch_size']) == model.encoder.patch_size
    assert np.allclose(json.loads(about['mean']), model.encoder.mean.flatten())
    assert np.allclose(json.loads(about['std']), model.encoder.std.flatten())
    assert float(about['cam_threshold']) == model.config.cam_threshold
    assert not list(path.parent.glob('*.data'))                          # one file


def test_the_example_needs_no_pytorch(pair, tmp_path):
    _, path = pair
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)).save(tmp_path/'image.png')
    example = ROOT/'examples/segment_onnx.py'
    assert len(example.read_text().splitlines()) <= 25
    code = (f'import runpy, sys; sys.argv[1:] = {[str(path), str(tmp_path/"image.png"), str(tmp_path/"mask.png")]}; '
            f'runpy.run_path({str(example)!r}); assert not {{"torch", "dalnet", "timm"}} & set(sys.modules)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    mask, image = np.asarray(Image.open(tmp_path/'mask.png')), np.asarray(Image.open(tmp_path/'image.png'))
    assert mask.shape == (50, 70) and 'of the pixels' in done.stdout
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]/255
    assert (torch.from_numpy(mask) == ExportNet(pair[0])(tensor)[0][0].argmax(0)).float().mean() > .999


@pytest.mark.parametrize('kind', ['vit_tiny', 'hybrid'])
def test_a_program_of_torch_export_takes_any_size(kind, tmp_path):
    options = dict(KINDS[kind])
    config = replace(PRESETS[options.pop('preset')], pretrained='none', **options)
    model = build_model(config, encode_text(['disc', 'ring'], model='hash')).eval()
    export_torch(model, tmp_path/'model.pt2', segmentation=False)
    code = (f'import torch; about = {{"dalnet.json": ""}}; p = torch.export.load({str(tmp_path/"model.pt2")!r}, '
            f'extra_files=about).module(); print([[tuple(v.shape) for v in p(torch.rand(b, 3, h, w))] '
            f'for b, h, w in {SIZES}], about["dalnet.json"])')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shapes = [[(b, 2, h, w), (b, 2)] for b, h, w in SIZES]
    assert str(shapes) in done.stdout and 'disc' in done.stdout


def test_an_untrained_head_gives_no_segmentation(tmp_path):
    model = build_model(PRESETS['demo'], encode_text(['disc'], model='hash')).eval()
    assert ExportNet(model, False).outputs == ('cam', 'tags')
    assert len(ExportNet(model, False)(torch.rand(1, 3, 96, 96))) == 2


def test_exporting_leaves_the_network_as_it_was():
    model = build_model(PRESETS['demo'], encode_text(['disc'], model='hash'))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ExportNet(model)
    assert model.training and model.encoder.patch_size == 8 and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_exported_is_one_line(monkeypatch):
    model = build_model(PRESETS['demo'], encode_text(['disc'], model='hash')).eval()
    def fail(*_, **__): raise RuntimeError('first\nsecond')
    monkeypatch.setattr(torch.export, 'export', fail)
    with pytest.raises(InputError, match='cannot be exported .first.') as error: traced(model)
    assert '\n' not in str(error.value)
