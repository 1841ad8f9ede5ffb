"Encoders that learnt otherwise than the paper's: the four presets, built with random weights"
from dataclasses import replace
import pytest
import torch
from dalnet.build import build_model, build_text
from dalnet.checkpoint import Checkpoint
from dalnet.config import PRESETS
from dalnet.encoder import Encoder
from dalnet.fetch import dalnet_fetch, needed_files
from dalnet.training import train

OTHERS = {  # preset: patch size, special tokens, what its pixels are normalised like
    'voc_dinov2': (14, 5, 'ImageNet'), 'voc_dinov3': (16, 5, 'ImageNet'),
    'voc_eva02': (14, 1, 'CLIP'), 'voc_clip': (16, 1, 'CLIP')}
MEAN = {'ImageNet': (.485, .456, .406), 'CLIP': (.48145466, .4578275, .40821073)}
STD = {'ImageNet': (.229, .224, .225), 'CLIP': (.26862954, .26130258, .27577711)}


@pytest.mark.parametrize('name', OTHERS)
def test_a_preset_builds_and_sees_an_image(name):
    config, (patch, special, pixels) = PRESETS[name], OTHERS[name]
    encoder = Encoder(config.encoder, False).eval()
    assert (encoder.patch_size, encoder.vit.num_prefix_tokens, len(encoder.vit.blocks)) == (patch, special, 12)
    assert encoder.mean.flatten().tolist() == pytest.approx(MEAN[pixels])
    assert encoder.std.flatten().tolist() == pytest.approx(STD[pixels])
    assert config.crop % patch == 0 and config.local_size % patch == 0
    with torch.no_grad(): features = encoder(torch.rand(1, 3, 50, 75))   # no multiple of either patch size
    grid = -(-50//patch), -(-75//patch)
    assert [tuple(each.shape) for each in features] == [(1, 768), (1, 768, *grid), (1, 768, *grid)]
    assert all(each.isfinite().all() for each in features)


@pytest.mark.parametrize('name', OTHERS)
def test_a_preset_takes_a_step_and_segments(name, shapes, tmp_path):
    patch = OTHERS[name][0]
    config = replace(
        PRESETS[name], data=str(shapes), text='hash', pretrained='none', encoder_options=dict(depth=3), seg_width=8,
        crop=6*patch, local_size=2*patch, local_crops=1, pseudo_scales=(1., .5),
        iterations=1, batch_size=2, warmup=0, seg_start=0, workers=0, device='cpu', out=str(tmp_path))
    model, _ = Checkpoint.load(train(config))
    found = model.eval().infer(torch.rand(1, 3, 50, 75))
    assert found.seg.shape == (1, len(model.names) + 1, -(-50//patch), -(-75//patch)) and found.seg.isfinite().all()


@pytest.mark.parametrize('name', OTHERS)
def test_every_weight_gets_a_gradient_but_frozen_positions(name):
    config = replace(PRESETS[name], text='hash', encoder_options=dict(depth=3))
    model = build_model(config, build_text(config, ('cat', 'dog')), pretrained=False)
    encoder = model.encoder
    sum(each.float().sum() for each in encoder(torch.rand(1, 3, 48, 48))).backward()
    without = {name for name, p in encoder.named_parameters() if p.grad is None}
    assert without == ({'vit.pos_embed'} if encoder.vit.pos_embed is not None else set())


@pytest.mark.parametrize('name', OTHERS)
def test_fetch_lists_the_files_of_a_preset(name, capsys, tmp_path):
    encoder, text = needed_files(PRESETS[name])
    assert encoder.source.startswith('timm/') and encoder.names and encoder.size > 3e8 and text.what == 'text'
    dalnet_fetch(['--preset', name, '--list', '--folder', str(tmp_path)])
    said = capsys.readouterr().out
    assert encoder.source in said and encoder.names[0] in said and 'not here' in said
