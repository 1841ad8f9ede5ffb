"Up to 1,000 classes: masks of 16 bits, whose ignored label is 65535, from training to evaluation"
import io, json
from dataclasses import replace
import numpy as np
import pytest, torch
import torch.nn.functional as F
from PIL import Image
from dalnet.cam import cam_to_label, class_labels
from dalnet.checkpoint import Checkpoint
from dalnet.config import PRESETS
from dalnet.core import IGNORE, colour_labels, ignore_label, mask_type, palette
from dalnet.dataset import check_classes
from dalnet.evaluation import evaluate_cams, evaluate_segmentation, evaluation_data
from dalnet.images import load_mask, save_mask
from dalnet.inference import Predictor
from dalnet.label_files import predict_files, pseudo_label_files
from dalnet.lattice import PermutohedralLattice
from dalnet.metrics import ConfusionMatrix, ThresholdSweep
from dalnet.refine import PAR, pair_counts, ptc_loss, refine_labels
from dalnet.run_report import image_panels, report_page, segmentation_errors
from dalnet.segment import DenseEnergyLoss, _masks, pixel_counts, seg_loss, segmentation_losses
from dalnet.training import train
from dalnet.watch import read_log
from test_bad_data import one_line

NAMES = tuple(f'kind {i:03}' for i in range(1, 301))                      # label i is "kind i"
TAGS = [(255, 299), (256, 300), (1, 254), (299,), (300, 2), (255, 65)]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "Six images with tags of 300 classes, and masks of their first tag, label 299 and the ignored one"
    root, rng = tmp_path_factory.mktemp('many'), np.random.default_rng(0)
    (root/'masks').mkdir()
    (root/'classes.txt').write_text('\n'.join(NAMES))
    lines = ['image,tags']
    for i, tags in enumerate(TAGS):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).resize((64, 64)).save(root/f'{i}.png')
        lines.append(f'{i}.png,{";".join(NAMES[label - 1] for label in tags)}')
        mask = np.full((64, 64), tags[0])
        mask[:16], mask[16:32], mask[32:48] = 0, 65535, 299
        save_mask(mask, root/f'masks/{i}.png', n_classes=300)
    (root/'tags.csv').write_text('\n'.join(lines))
    return root


@pytest.fixture(scope='module')
def run(root, tmp_path_factory):
    "Two steps, the second with segmentation -> settings, and the last checkpoint"
    config = replace(PRESETS['demo'], data=str(root/'tags.csv'), out=str(tmp_path_factory.mktemp('run')/'run'),
                     iterations=2, batch_size=3, seg_start=1, ptc_start=0, warmup=1, save_every=2, log_every=1, crop=64,
                     encoder_options=dict(depth=3, patch_size=16, img_size=64), seg_width=16, workers=0)
    return config, train(config)


@pytest.fixture(scope='module')
def model(run):
    "The trained network, made to label every pixel 299"
    model, _ = Checkpoint.load(run[1])
    with torch.no_grad():
        model.seg_head[-1].weight.zero_()[299] = 1
        for layer in (0, 2): model.seg_head[layer].weight.abs_()
        model.seg_head[0].weight[0] += 10
    return model


def mask_of(path): return np.asarray(Image.open(path)).astype(int)


# masks

def test_the_format_depends_on_the_number_of_classes_alone():
    assert [ignore_label(n) for n in (1, 254, 255, 1000)] == [255, 255, 65535, 65535]
    assert [mask_type(n) for n in (254, 255)] == [np.uint8, np.uint16]
    for n, mode in ((254, 'P'), (255, 'I;16'), (1000, 'I;16')):
        file = io.BytesIO()
        save_mask(np.zeros((2, 3)), file, n_classes=n)
        assert Image.open(file).mode == mode


def test_1000_classes_survive_a_file(tmp_path):
    mask = np.append(np.arange(1001), [65535, 0, 255]).reshape(-1, 4)
    save_mask(mask, tmp_path/'m.png', 'a note', n_classes=1000)
    assert np.array_equal(load_mask(tmp_path/'m.png', 1000), mask)
    assert np.array_equal(mask_of(tmp_path/'m.png'), mask)               # as any other program reads it
    assert Image.open(tmp_path/'m.png').text['Software'] == 'a note'
    one_line(lambda: load_mask(tmp_path/'m.png', 999), 'm.png', 'expected labels 0-999 or 65535, got 1000')
    one_line(lambda: save_mask(mask, tmp_path/'m.png'), 'm.png', '0 to 65535 do not fit a mask of 254 classes')


def test_8_bits_that_may_mean_two_things(tmp_path):
    save_mask(np.array([[0, 254]]), tmp_path/'m.png')
    assert load_mask(tmp_path/'m.png', 300).tolist() == [[0, 254]]        # clear without 255
    save_mask(np.array([[0, 255]]), tmp_path/'m.png')
    assert load_mask(tmp_path/'m.png', 254).tolist() == [[0, 255]]
    one_line(lambda: load_mask(tmp_path/'m.png', 300), 'm.png', '8 bits', 'save it with 16 bits')


def test_1001_classes_are_refused():
    assert len(check_classes(map(str, range(1000)), 'here')) == 1000
    one_line(lambda: check_classes(map(str, range(1001)), 'here'), 'here', '1001 classes', 'at most 1000')


def test_every_label_has_its_own_colour():
    assert len({tuple(colour) for colour in palette(1001).tolist()}) == 1001
    mask = np.array([[0, 255, 256, 1000, 65535]])
    assert np.array_equal(colour_labels(mask)[0, :2], palette()[[0, 255]])
    assert np.array_equal(colour_labels(torch.from_numpy(mask)), palette(65536)[mask])


# the whole way

def test_training_learns_from_labels_beyond_254(run):
    config, last = run
    lines = read_log(config.out)
    assert len(lines) == 2 and lines[1]['seg'] > 0 and all(np.isfinite(list(lines[1].values())))
    assert len(json.loads((last/'config.json').read_text())['names']) == 300


def test_pseudo_labels(run, root, tmp_path):
    done, _, failures = pseudo_label_files(run[1], tmp_path/'sure', high=0, low=0, scales=(1.,), device='cpu')
    assert (done, failures) == (6, [])
    seen = set()
    for i, tags in enumerate(TAGS):
        with Image.open(tmp_path/f'sure/{i}.png') as image: assert image.mode == 'I;16' and image.size == (64, 64)
        found = set(load_mask(tmp_path/f'sure/{i}.png', 300).unique().tolist())
        assert found <= {0, *tags}
        seen |= found
    assert 299 in seen and seen & {255, 256}
    pseudo_label_files(run[1], tmp_path/'unsure', high=1, low=0, scales=(1.,), device='cpu')
    assert 65535 in mask_of(tmp_path/'unsure/3.png') and not (mask_of(tmp_path/'unsure/3.png') == 255).any()


def test_predictions(model, root, tmp_path):
    done, _, failures = predict_files(Predictor(model, 'cpu', (1.,), False), [root/'0.png'], tmp_path)
    assert (done, failures) == (1, [])
    assert (mask_of(tmp_path/'0.png') == 299).all()
    assert Image.open(tmp_path/'0.png').mode == 'I;16' and Image.open(tmp_path/'0_overlay.jpg').mode == 'RGB'
    assert json.loads((tmp_path/'0.json').read_text())['classes'] == {'kind 299': 1.}
    assert predict_files(Predictor(model, 'cpu', (1.,), False), [root/'0.png'], tmp_path)[:2] == (0, 1)


def test_evaluation(run, model, root):
    data = evaluation_data(run[0], '', mask_folder=root/'masks', classes=NAMES)
    assert data[0]['mask'].unique().tolist() == [0, 255, 299, 65535]
    scores = evaluate_segmentation(model, data, (1.,), False)
    iou, pixels = scores.iou['single'], np.array([1, 1, 1, 2, 1, 1]).sum()
    assert iou[299] == pytest.approx(pixels/18) and iou[0] == iou[255] == 0 and np.isnan(iou[200])
    cams = evaluate_cams(model, data, (1.,), False)
    assert len(cams['cam'].fixed_iou) == 301 and np.isfinite(cams['cam'].miou)
    found = segmentation_errors(model, data, 2, scales=(1.,), flip=False)
    page = report_page(found, data)
    assert all(name in page for name in ('kind 299', 'kind 300'))
    assert set(image_panels(data[0]['image'], torch.full((64, 64), 299), data[0]['mask'], 65535)) == {
        'image', 'truth', 'prediction', 'errors'}


# 255 is a class, 65535 is ignored

def test_losses_with_255_as_a_class():
    g = torch.Generator().manual_seed(0)
    label = torch.tensor([0, 3, 255, 65535])[torch.randint(4, (2, 6, 8), generator=g)]
    low = label.where(label != 255, 4)
    low = low.where(label != 65535, IGNORE)                               # the same with few classes
    patch = torch.randn(2, 5, 6, 8, generator=g)
    assert torch.equal(pair_counts(label, 65535), pair_counts(low))
    assert torch.equal(pixel_counts(label, 65535), pixel_counts(low))
    assert torch.equal(ptc_loss(patch, label, ignore=65535), ptc_loss(patch, low))
    few = torch.randn(2, 5, 6, 8, generator=g)
    many = torch.full((2, 301, 6, 8), -1e4)
    many[:, [0, 1, 2, 3, 255]] = few
    torch.testing.assert_close(seg_loss(many, label), seg_loss(few, low))
    image, energy = 255*torch.rand(2, 3, 6, 8, generator=g), DenseEnergyLoss(1.)
    for name, value in segmentation_losses(image, many, label, energy).items():
        torch.testing.assert_close(value, segmentation_losses(image, few, low, energy)[name])
    confusion = ConfusionMatrix(301).update(label.clamp(max=300), label)
    assert confusion.counts.sum() == (label != 65535).sum() and confusion.miou() == 1


@pytest.mark.parametrize('classes, size, scale', [(5, (32, 48), .5), (300, (32, 48), .5), (1000, (30, 33), .5),
                                                  (300, (32, 48), .25), (300, (16, 16), 1.)])
def test_bands_equal_the_dense_form(classes, size, scale):
    "Values and gradients of both losses, to 1e-6, against all probabilities at full size and autograd"
    g = torch.Generator().manual_seed(0)
    image = 255*torch.rand(2, 3, *size, generator=g, dtype=torch.double)
    logits = 3*torch.randn(2, classes + 1, 2, 3, generator=g, dtype=torch.double)
    label = torch.tensor([0, 1, classes, ignore_label(classes)])[torch.randint(4, (2, *size), generator=g)]
    energy, roi = DenseEnergyLoss(1e-3, scale=scale), torch.tensor([[0, size[0], 0, size[1]], [3, 14, 0, 11]])
    logits.requires_grad_()
    small = energy.small(size)
    full = F.interpolate(logits, size, mode='bilinear')
    S = F.interpolate(full.softmax(1), small, mode='bilinear')
    inside, gate = _masks(S, label, roi, small)
    S = S*inside
    lattice = PermutohedralLattice(energy.features(image, small, logits))
    GWS = lattice.filter(S.flatten(2).transpose(1, 2), symmetric=False).transpose(1, 2).reshape(S.shape)*gate
    reg = -energy.weight/2*(S*GWS.detach()).sum()
    dense = dict(seg=seg_loss(logits, label), reg=2*reg - reg.detach())
    for name, value in segmentation_losses(image, logits, label, energy, roi).items():
        slopes = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (value, dense[name])]
        assert abs(value - dense[name]) <= 1e-6*abs(dense[name])
        assert (slopes[0] - slopes[1]).norm() <= 1e-6*slopes[1].norm() and slopes[1].norm() > 0


def test_an_image_with_300_tags():
    g = torch.Generator().manual_seed(0)
    cam, tags = torch.rand(1, 300, 4, 5, generator=g)*.5, torch.ones(1, 300)
    cam[0, 254, 0, 0], cam[0, 298, 0, 1], cam[..., 0, 2] = 1., 1., 0.     # labels 255 and 299, and background
    label = cam_to_label(cam, tags, .6, .1)
    assert label[0, 0].tolist() == [255, 299, 0, 65535, 65535]
    order = torch.arange(299, -1, -1)[None]
    assert class_labels(label, order, 300)[0, 0].tolist() == [46, 2, 0, 65535, 65535]
    refined = refine_labels(PAR(), 255*torch.rand(1, 3, 8, 10, generator=g), cam, tags)
    assert set(refined.unique().tolist()) <= {*range(301), 65535}
    sweep = ThresholdSweep(301)
    sweep.update(cam, tags, label)
    assert sweep.counts[0].sum() == (label != 65535).sum()
