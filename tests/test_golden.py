"""The published recipe (ToCo, Ru et al., CVPR 2023) in recorded numbers: our slow form and dalnet both reproduce them

`slow_forms.py` describes each part in plain loops, and its results were compared with those of ToCo's published code
on the same inputs before they were recorded. Where dalnet differs on purpose, a test says by how much.
"""
from dataclasses import replace
import numpy as np
import pytest
import torch
import slow_forms
from slow_forms import RECORDS, golden
from dalnet.cam import cam_to_label, multi_scale_cam, normalize_cam
from dalnet.config import PRESETS
from dalnet.contrast import certainty, crop_flags, ctc_loss
from dalnet.pseudo import pseudo_labels
from dalnet.refine import PAR, ptc_loss, refine_labels
from dalnet.segment import seg_loss
from dalnet.step import phase_at
from dalnet.training import poly_lr


def tensors(given):
    "Recorded arrays as tensors, numbers in float32"
    def convert(value): return torch.tensor(value).float() if value.dtype.kind == 'f' else torch.tensor(value)
    return {name: convert(value) if isinstance(value, np.ndarray) else value for name, value in given.items()}


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=atol)


def same(a, b, path=''):
    "Whether two records agree: numbers to 1e-6, everything else exactly"
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for name in a: same(a[name], b[name], f'{path}/{name}')
    elif isinstance(a, (list, tuple, np.ndarray)) and isinstance(a[0], dict):
        for i, (one, other) in enumerate(zip(a, b, strict=True)): same(one, other, f'{path}/{i}')
    elif isinstance(a, str): assert a == b, path
    else: np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-9, atol=1e-6, err_msg=path)


@pytest.mark.parametrize('part', RECORDS)
def test_the_slow_form_gives_the_recorded_numbers(part):
    given, found = RECORDS[part]()
    recorded = golden(part)
    same(slow_forms.plain(given), recorded[0])
    same(found, recorded[1])


def network(image, weight, slope):
    "`slow_forms.network` in PyTorch, on batches"
    mean = torch.nn.functional.avg_pool2d(image, 4)                  # (B,3,h,w)
    across = (torch.arange(mean.shape[3]) + .5)/mean.shape[3]
    return torch.einsum('ck,bkhw->bchw', weight, mean) + slope[:, None, None]*across


class Network:
    "What `pseudo_labels` needs of a model: final and intermediate activations"
    def __init__(self, given): self.given = given

    def activations(self, image, text=False):
        return tuple(network(image, self.given[f'{kind}weight'], self.given[f'{kind}slope']) for kind in ('', 'inter_'))


def test_cams_over_scales_and_flips():
    given, found = golden('cam')
    given = tensors(given)
    def model(image): return network(image, given['weight'], given['slope'])
    cam = multi_scale_cam(model, given['image']/255, (1., .5, 1.5))
    close(cam[..., ::2, ::3], found['antialias'])
    assert abs(found['antialias'] - found['cam']).max() < .01        # dalnet averages the pixels of smaller images


def test_cams_over_scales_that_are_not_smaller():
    given = tensors(golden('cam')[0])
    weight, slope, image = given['weight'], given['slope'], given['image']/255
    def slow(view): return slow_forms.network(view, weight.numpy(), slope.numpy())
    expected = slow_forms.multi_scale_cam(slow, image[0].numpy(), (1., 1.5))
    close(multi_scale_cam(lambda view: network(view, weight, slope), image, (1., 1.5))[0], expected)


def test_normalising_by_minimum_and_maximum():
    maps = torch.tensor([[[[2., 3.], [4., 7.]]]])
    published = (maps - 2)/(5 + 1e-5)
    close(normalize_cam(maps, min_max=True), published)              # dalnet divides by max(5, 1e-5)


def test_labels_of_two_thresholds_or_one():
    given, found = golden('label')
    given = tensors(given)
    cam, tags, box = (given[name] for name in ('cam', 'tags', 'box'))
    np.testing.assert_array_equal(cam_to_label(cam, tags, given['high'], given['low'], box), found['label'])
    np.testing.assert_array_equal(cam_to_label(cam, tags, .5, .5), found['single'])


@pytest.mark.parametrize('scale', [1., 1/255])
def test_par(scale):
    given, found = golden('par')
    given = tensors(given)
    close(PAR()(scale*given['image'], given['maps']), found['refined'])  # published with images in 0-1


def test_refined_labels():
    given, found = golden('refine')
    given = tensors(given)
    image, cam, tags, high, low, box = given.values()
    labels = refine_labels(PAR(), image.float(), cam, tags, high, low, box)
    np.testing.assert_array_equal(labels, found['label'])
    assert set(np.unique(labels)) == {0, 1, 2, 255}


def test_pseudo_labels_from_images_to_both_labels():
    given, found = golden('pseudo')
    given = tensors(given)
    network, image = Network(given), given['image']/255
    labels = pseudo_labels(
        network, network.activations(image), image, given['tags'], given['box'], PAR(), tuple(given['scales'].tolist()),
        high=given['high'], low=given['low'])
    np.testing.assert_array_equal(labels.patch, found['patch'])      # the box in patches; published in pixels
    np.testing.assert_array_equal(labels.pixel, found['pixel'])


def test_patch_token_contrast():
    given, found = golden('patch_contrast')
    close(ptc_loss(*tensors(given).values()), found['loss'])


def test_cross_entropy():
    given, found = golden('cross_entropy')
    close(seg_loss(*tensors(given).values()), found['loss'])
    ground = torch.zeros(1, 5, 6, dtype=torch.int64)
    logits = torch.zeros(1, 4, 5, 6)
    close(seg_loss(logits, ground), .5*np.log(4))                    # NaN in the published recipe: no class pixels


def test_class_token_contrast():
    given, found = golden('class_contrast')
    t = tensors(given)
    level = certainty((t['cam']*t['tags'][:, :, None, None]).amax(1), t['high'], t['low'])
    flags = crop_flags(level, t['corners'], t['size'])
    flags = torch.cat([torch.ones(2, 2), flags], 1)                  # global views are positives
    assert flags.tolist() == np.asarray(found['flags']).tolist()
    student, teacher = t['student'].transpose(0, 1), t['teacher'].transpose(0, 1)    # ours have the batch first
    close(ctc_loss(student, teacher, flags, t['temperature']), found['loss'])


def test_learning_rate():
    given, found = golden('schedule')
    total, lr, warmup, ratio, power = (given[name] for name in ('total', 'lr', 'warmup', 'ratio', 'power'))
    for step, expected in zip(given['steps'], found['learning_rate']):
        close(poly_lr(step, total, lr, warmup, ratio*lr, power), expected, atol=0)
        ours = poly_lr(step, total, lr, warmup, ratio, power)        # the paper: a warm-up from 1e-6, not from 6e-11
        assert 0 <= ours - expected <= ratio + 1e-12


@pytest.mark.parametrize('dataset', ['voc', 'coco'])
def test_weights_of_the_losses(dataset):
    given, found = golden('schedule')
    config = replace(PRESETS[f'{dataset}_vit_b'], method='toco')
    for step, expected in list(zip(given['steps'], found[dataset]))[1:]:
        phase = phase_at(config, step)                               # dalnet counts from 1, the published recipe from 0
        weights = {name: config.weights[name] for name in ('cls', 'inter', 'ptc', 'ctc', 'seg', 'reg')}
        if not phase.contrast: weights |= dict(ptc=0., ctc=0.)
        if not phase.segment: weights |= dict(seg=0., reg=0.)
        assert weights == {name: expected[name] for name in weights}, step
        if expected['seg']: assert (phase.source == 'inter') == (expected['source'] == 'inter'), step
