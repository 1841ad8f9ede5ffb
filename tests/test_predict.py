"`dalnet_predict` as its users need it: formats read back by their own tools, known tags, borders, notes, newest runs"
import json, os, re, shutil
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from dalnet.archives import TarMember
from dalnet.build import build_model, build_text
from dalnet.checkpoint import Checkpoint
from dalnet.config import PRESETS
from dalnet.core import InputError
from dalnet.exports import parse_xml, read_cvat
from dalnet.image_files import find_images
from dalnet.images import load_mask, save_mask
from dalnet.inference import Predictor
from dalnet.label_files import predict_files
from dalnet.label_formats import brush_rle, coco_rle, polygons
from dalnet.predict import dalnet_predict
from dalnet.results import result_files, write_prediction
from dalnet.shapes import SHAPE_CLASSES
from dalnet.tool_files import FORMATS, write_tool_files
from test_cli import error_of
from test_trust_files import archive, jpeg, noise


@pytest.fixture(scope='module')
def run(shapes, tmp_path_factory):
    "The folder of a run with two checkpoints of a small untrained network"
    torch.manual_seed(0)
    config = replace(PRESETS['demo'], data=str(shapes), seg_start=1, test_scales=(1.,), long_side=96,
                     encoder_options=dict(depth=1, patch_size=16, img_size=96))
    text, out = build_text(config, SHAPE_CLASSES), tmp_path_factory.mktemp('runs')/'small'
    model = build_model(config, text)
    torch.nn.init.normal_(list(model.seg_head.parameters())[-2], std=.4)    # labels of several classes
    for n in (2, 4): Checkpoint.save(out/f'iter_{n:06}', model, config, text, n)
    return out


@pytest.fixture(scope='module')
def predictor(run): return Predictor(run, 'cpu', flip=False)


def blobs(seed, size=(96, 128), n_classes=6):
    "(H,W) labels of smooth blobs of several classes, some with holes"
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    for label in rng.choice(n_classes, 3, replace=False) + 1:
        field = ndimage.gaussian_filter(rng.standard_normal(size), 9)
        mask[field > np.quantile(field, .8)] = label
    y, x = np.mgrid[:size[0], :size[1]]
    away = np.hypot(x - 64, y - 48)
    mask[(away < 25) & (away > 9)] = 2                                    # a ring
    return mask


class Drawn:
    "A prediction of a known mask"
    names, shares, confidence = SHAPE_CLASSES, {}, None
    def __init__(self, mask):
        self.mask, self.tags = torch.from_numpy(mask.astype(np.int64)), {}
        self.tags = {SHAPE_CLASSES[label - 1]: .9 for label in np.unique(mask) if 0 < label < 255}


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    "Known masks with all files for tools: (folder, name -> mask); one pixel strip is unlabelled"
    photos, out = tmp_path_factory.mktemp('photos'), tmp_path_factory.mktemp('drawn')
    masks = {f'b{i}': blobs(i) for i in range(4)} | {'empty': np.zeros((96, 128), np.uint8)}
    masks['b0'][:4] = 255
    for name, mask in masks.items():
        image = photos/f'{name}.jpg'
        image.write_bytes(jpeg(3, (128, 96)))
        write_prediction(image, Image.open(image), Drawn(mask), result_files(out, name), {})
    write_tool_files(out, {}, SHAPE_CLASSES, FORMATS)
    return out, masks


def wanted(mask): return np.where(mask == 255, 0, mask)


def iou(a, b): return (a & b).sum()/max(1, (a | b).sum())


def coco_masks(path, size):
    "Image name -> labels, as pycocotools reads them"
    COCO = pytest.importorskip('pycocotools.coco', reason='reads COCO').COCO
    coco, found = COCO(path), {}
    for image in coco.loadImgs(coco.getImgIds()):
        mask = np.zeros(size, int)
        for each in coco.loadAnns(coco.getAnnIds(image['id'])):
            inside = coco.annToMask(each).astype(bool)
            assert not isinstance(each['segmentation'], dict) or each['area'] == inside.sum()
            mask[inside] = each['category_id']
        found[Path(image['file_name']).stem] = mask
    assert [each['name'] for each in coco.loadCats(coco.getCatIds())] == list(SHAPE_CLASSES)
    return found


def test_coco_run_lengths_are_exact(drawn):
    out, masks = drawn
    found = coco_masks(out/'labels_coco.json', (96, 128))
    assert found.keys() == masks.keys()
    for name, mask in masks.items(): assert np.array_equal(found[name], wanted(mask))


def test_run_lengths_are_those_of_the_tools():
    rle = pytest.importorskip('pycocotools.mask', reason='packs run lengths')
    brush = pytest.importorskip('label_studio_sdk.converter.brush', reason="Label Studio's brush")
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (5, 7), (40, 300), (300, 300)):
        for inside in (rng.random(shape) > .5, np.zeros(shape, bool), np.ones(shape, bool)):
            assert coco_rle(inside)['counts'] == rle.encode(np.asfortranarray(inside, np.uint8))['counts'].decode()
            assert np.array_equal(brush.decode_rle(brush_rle(inside)).reshape(*shape, 4)[..., 3] > 0, inside)


def test_polygons_keep_blobs_and_their_holes(drawn, tmp_path):
    rle = pytest.importorskip('pycocotools.mask', reason='fills polygons')
    out, masks = shutil.copytree(drawn[0], tmp_path/'out'), drawn[1]
    write_tool_files(out, {}, SHAPE_CLASSES, ('coco',), as_polygons=True)
    found, worst = coco_masks(out/'labels_coco.json', (96, 128)), 1
    for name, mask in masks.items():
        for label in set(np.unique(mask)) - {0, 255}:
            worst = min(worst, iou(found[name] == label, mask == label))
    assert worst > .95
    inside = blobs(1) == 2
    assert not inside[48, 64] and inside[48, 64 + 15]                     # the hole of the ring, and the ring
    exact = rle.merge(rle.frPyObjects([each.ravel().tolist() for each in polygons(inside, 0)], 96, 128))
    assert np.array_equal(rle.decode(exact), inside)                      # without simplification


def test_label_studio_reads_its_brush(drawn):
    brush = pytest.importorskip('label_studio_sdk.converter.brush', reason="Label Studio's brush")
    out, masks = drawn
    tasks = json.loads((out/'labels_labelstudio.json').read_text())
    assert len(tasks) == len(masks)
    for task in tasks:
        name = Path(task['data']['image'].rsplit('?d=', 1)[1]).stem
        results = task['predictions'][0]['result']
        layers = brush.decode_from_annotation('label', [result | result['value'] for result in results])
        mask = np.zeros((96, 128), int)
        for key, layer in layers.items(): mask[layer > 0] = 1 + SHAPE_CLASSES.index(key.split('-')[1])
        assert np.array_equal(mask, wanted(masks[name]))


def test_label_studio_config_names_what_the_results_name(drawn):
    labelling = pytest.importorskip('label_studio_sdk.label_interface', reason='reads labelling interfaces')
    out, _ = drawn
    interface = labelling.LabelInterface((out/'labels_labelstudio.xml').read_text())
    assert set(interface.get_control('label').labels) == set(SHAPE_CLASSES)
    for task in json.loads((out/'labels_labelstudio.json').read_text()):
        for result in task['predictions'][0]['result']:
            assert interface.validate_region(result)


@pytest.mark.parametrize('as_polygons', [False, True])
def test_cvat_is_read_back(drawn, tmp_path, as_polygons):
    out, masks = shutil.copytree(drawn[0], tmp_path/'out'), drawn[1]
    write_tool_files(out, {}, SHAPE_CLASSES, ('cvat',), as_polygons=as_polygons)
    for image in parse_xml(out/'labels_cvat.xml').iter('image'):
        mask = masks[Path(image.get('name')).stem]
        found = np.zeros(mask.shape, int)
        for each in image.findall('mask'):
            lengths = [int(length) for length in each.get('rle').split(',')]
            left, top, width, height = (int(each.get(name)) for name in ('left', 'top', 'width', 'height'))
            inside = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(height, width) == 1
            found[top:top + height, left:left + width][inside] = 1 + SHAPE_CLASSES.index(each.get('label'))
        if not as_polygons: assert np.array_equal(found, wanted(mask))
        else: assert bool(image.findall('polygon')) == bool(wanted(mask).any()) and not found.any()
    batch, = read_cvat(out/'labels_cvat.xml', [])                          # our own reader of tags
    tags = dict(zip(batch.image.to_pylist(), batch.tags.to_pylist()))
    assert {name: set(each) for name, each in tags.items()} == {
        f'{name}.jpg': {SHAPE_CLASSES[label - 1] for label in np.unique(wanted(mask)) if label}
        for name, mask in masks.items()}


def test_fiftyone_has_a_grey_mask_for_each_image(drawn):
    out, masks = drawn
    root = out/'labels_fiftyone'
    images, labels = ({path.stem: path for path in (root/name).iterdir()} for name in ('data', 'labels'))
    assert images.keys() == labels.keys() == masks.keys()
    targets = json.loads((root/'targets.json').read_text())['default_mask_targets']
    assert list(targets.values()) == ['background', *SHAPE_CLASSES] and list(targets) == [str(i) for i in range(7)]
    for name, mask in masks.items():
        with Image.open(labels[name]) as image: assert image.mode == 'L' and np.array_equal(np.asarray(image), mask)


def test_yolo_and_coco_as_supervision_reads_them(drawn):
    sv = pytest.importorskip('supervision', reason='reads YOLO and COCO')
    out, masks = drawn
    images, labels, about = (str(out/f'labels_yolo/{name}') for name in ('images', 'labels', 'data.yaml'))
    yolo = sv.DetectionDataset.from_yolo(images, labels, about, force_masks=True)
    coco = sv.DetectionDataset.from_coco(images, str(out/'labels_coco.json'), force_masks=True)
    for dataset, least in ((yolo, .95), (coco, 1.)):
        assert dataset.classes == list(SHAPE_CLASSES)
        seen = {Path(path).stem: found for path, _, found in dataset}
        assert seen.keys() == masks.keys()
        for name, mask in masks.items():
            found = np.zeros((7, *mask.shape), bool)
            parts = zip(seen[name].mask, seen[name].class_id) if len(seen[name]) else []
            for inside, c in parts: found[c + 1] |= inside
            for label in set(np.unique(mask)) - {0, 255}: assert iou(found[label], mask == label) >= least


def output(capsys, *argv):
    "Run the command -> (exit code, stdout, stderr)"
    code = 0
    try: dalnet_predict(list(map(str, argv)))
    except SystemExit as end: code = end.code
    return code, *capsys.readouterr()


def test_a_run_for_its_newest_checkpoint_and_all_formats(run, tmp_path, capsys):
    photos, out = noise(tmp_path/'photos', 'a.jpg', 'b.jpg'), tmp_path/'out'
    args = '--checkpoint', run, '--out', out, '--crf', 'none', '--flip', 'false'
    code, said, _ = output(capsys, photos, *args, '--format', ','.join(FORMATS))
    assert code == 0 and f'checkpoint: {run/"iter_000004"}' in said and '2 labelled' in said
    assert said.count('written: ') == 6
    assert (out/'classes.txt').read_text().split() == list(SHAPE_CLASSES)
    about = json.loads((out/'a.json').read_text())
    mask = np.asarray(Image.open(out/'a.png'))
    names = ('background', *SHAPE_CLASSES)
    assert about['labels'] == {str(label): names[label] for label in np.unique(mask)}
    with Image.open(out/'a_overlay.jpg') as overlay, Image.open(photos/'a.jpg') as picture:
        assert overlay.width == picture.width and overlay.height > picture.height
    assert coco_masks(out/'labels_coco.json', mask.shape)['a'].tolist() == mask.tolist()
    noise(photos, 'c.jpg')                                                 # a third image is appended
    before = (out/'labels_cvat.xml').read_bytes()
    assert '1 labelled, 2 done before' in output(capsys, photos/'c.jpg', photos, *args, '--format', 'coco')[1]
    assert len(json.loads((out/'labels_coco.json').read_text())['images']) == 3
    assert (out/'labels_cvat.xml').read_bytes() == before
    line = output(capsys, photos, *args, '--format', 'coco,png,voc')[2]
    assert re.match(r'error: .*one or more of png, coco, .*got "voc"', line) and line.count('\n') == 1
    damaged = shutil.copytree(run, tmp_path/'damaged')
    (damaged/'iter_000004/model.safetensors').write_bytes(b'torn')
    code, said, err = output(capsys, photos, '--checkpoint', damaged, '--out', tmp_path/'2', '--crf', 'none')
    assert code == 0 and 'iter_000002' in said and 'damaged' in err


def test_every_command_takes_a_run(run, shapes, tmp_path):
    more = '--crf', 'none', '--scales', '1', '--data', shapes, '--split', 'val'
    from test_cli import command
    for words in (['dalnet_eval', run, *more, '--what', 'segmentation', '--out', tmp_path/'s.json'],
                  ['dalnet_report', run, *more, '--what', 'segmentation', '--out', tmp_path/'r.html'],
                  ['dalnet_pseudo_labels', run, '--out', tmp_path/'p', '--scales', '1', '--data', shapes]):
        code, out, err = command(*words)
        assert code == 0 and f'checkpoint: {run/"iter_000004"}' in out, (words, err)


def test_files_of_others_stay(predictor, run, tmp_path):
    photos, out = noise(tmp_path/'photos', 'a.jpg'), tmp_path/'out'
    (out/'labels_yolo/labels').mkdir(parents=True)
    for path in (out/'labels_coco.json', out/'labels_yolo/labels/mine.txt'): path.write_text('mine')
    for kind, words in (('coco', 'labels_coco.json: not made by'), ('yolo', 'a folder that dalnet did not make')):
        with pytest.raises(InputError, match=words): predict_files(predictor, [photos], out, formats=(kind,))
    assert not (out/'a.png').exists()                                      # said before anything is computed
    assert predict_files(predictor, [photos], out, True, formats=('coco', 'yolo')) == (1, 0, [])
    assert json.loads((out/'labels_coco.json').read_text())['images'][0]['file_name'] == 'a.jpg'
    assert (out/'labels_yolo/labels/mine.txt').read_text() == 'mine'
    (out/'classes.txt').write_text('cat\ndog\n')
    with pytest.raises(InputError, match='classes.txt: lists other classes'): predict_files(predictor, [photos], out)
    assert predict_files(predictor, [photos], out, True)[:2] == (0, 1)


def test_an_interrupted_run_leaves_the_file_before_it(predictor, tmp_path, monkeypatch):
    photos, out = noise(tmp_path/'photos', 'a.jpg', 'b.jpg'), tmp_path/'out'
    predict_files(predictor, [photos/'a.jpg'], out, formats=('coco',))
    before = (out/'labels_coco.json').read_bytes()
    def stop(*args): raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr('dalnet.tool_files.coco_annotations', stop)
        with pytest.raises(KeyboardInterrupt): predict_files(predictor, [photos], out, formats=('coco',))
    assert (out/'labels_coco.json').read_bytes() == before and not list(out.glob('.part-*'))
    assert predict_files(predictor, [photos], out, formats=('coco',)) == (0, 2, [])
    assert len(json.loads((out/'labels_coco.json').read_text())['images']) == 2


def test_images_of_an_archive_reach_the_tools(predictor, tmp_path):
    data, out = jpeg(5), tmp_path/'out'
    shard = archive(tmp_path/'shard.tar', [('01/d.jpg', data)])
    assert predict_files(predictor, [shard], out, formats=('yolo', 'coco')) == (1, 0, [])
    assert (out/'labels_yolo/images/01/d.jpg').read_bytes() == data and (out/'labels_yolo/labels/01/d.txt').is_file()
    assert json.loads((out/'labels_coco.json').read_text())['images'][0]['file_name'] == '01/d.jpg'
    assert isinstance(find_images([shard])['01/d'], TarMember)


def test_confidence_and_doubtful_pixels(predictor, run, tmp_path):
    photos = noise(tmp_path/'photos', 'a.jpg')
    assert predict_files(predictor, [photos], tmp_path/'1')[:2] == (1, 0)
    assert not (tmp_path/'1/a_confidence.png').exists()
    assert predict_files(predictor, [photos], tmp_path/'1', confidence=True)[:2] == (1, 0)   # is made now
    assert predict_files(predictor, [photos], tmp_path/'1', confidence=True)[:2] == (0, 1)
    found = predictor(photos/'a.jpg')
    with Image.open(tmp_path/'1/a_confidence.png') as image: grey = np.asarray(image)
    assert grey.dtype == np.uint8 and grey.shape == (24, 32)
    assert np.array_equal(grey, (found.probs.amax(0)*255).round().byte().numpy())
    level = float(found.confidence.median())
    doubtful = Predictor(run, 'cpu', flip=False, min_confidence=level)
    predict_files(doubtful, [photos], tmp_path/'2')
    mask = load_mask(tmp_path/'2/a.png', 6)
    assert .3 < (mask == 255).float().mean() < .7
    assert torch.equal(mask, torch.where(found.confidence < level, 255, found.mask))
    about = json.loads((tmp_path/'2/a.json').read_text())
    assert about['labels']['255'] == 'unlabelled' and sum(about['classes'].values()) == pytest.approx(1)
    with pytest.raises(InputError, match='min_confidence must be from 0 to 1'): Predictor(run, min_confidence=2)


def test_known_tags_limit_masks_and_the_rest_is_noted_once(predictor, tmp_path):
    photos, out, notes = noise(tmp_path/'photos', 'a.jpg', 'b.jpg', 'c.jpg'), tmp_path/'out', []
    table = tmp_path/'photos/tags.csv'
    table.write_text('image,tags\na.jpg,disc\nb.jpg,ring;star\n')
    assert predict_files(predictor, [photos], out, tags=table, note=notes.append) == (3, 0, [])
    assert len(notes) == 1 and '1 of 3 images, e.g. c;' in notes[0]
    for name, tags in (('a', {'disc'}), ('b', {'ring', 'star'})):
        mask = load_mask(out/f'{name}.png', 6)
        assert {SHAPE_CLASSES[label - 1] for label in mask.unique().tolist() if label} <= tags
        assert json.loads((out/f'{name}.json').read_text())['settings']['known_tags'] == sorted(tags)
    assert torch.equal(load_mask(out/'c.png', 6), predictor(photos/'c.jpg').mask)
    table.write_text('image,tags\na.jpg,star\nb.jpg,ring;star\nc.jpg,star\n')
    assert predict_files(predictor, [photos], out, tags=table, note=notes.append) == (2, 1, [])  # a and c are new
    table.write_text('image,tags\na.jpg,unicorn\n')
    with pytest.raises(InputError, match='row 2: unknown class "unicorn"'):
        predict_files(predictor, [photos], out, tags=table)


def test_background_bias_tightens_masks(run, predictor, tmp_path):
    path = noise(tmp_path/'photos', 'a.jpg')/'a.jpg'
    shares = {bias: float((Predictor(run, 'cpu', flip=False, background_bias=bias)(path).mask > 0).float().mean())
              for bias in (-3., -1., 0., 1., 3.)}
    assert list(shares.values()) == sorted(shares.values(), reverse=True) and shares[-3.] > shares[3.]
    assert shares[0.] == float((predictor(path).mask > 0).float().mean())
    probs = predictor(path).probs
    biased = Predictor(run, 'cpu', flip=False, background_bias=1.)(path).probs
    odds, more = probs[0]/(1 - probs[0]), biased[0]/(1 - biased[0])
    torch.testing.assert_close(more, odds*torch.e, rtol=1e-3, atol=1e-4)
    assert 'background_bias' not in predictor.settings                    # masks from before stay valid
    with pytest.raises(InputError, match='background_bias must be'): Predictor(run, background_bias=float('nan'))


def test_masks_in_a_subfolder_and_unread_pictures_are_said(predictor, tmp_path):
    photos, notes = noise(tmp_path/'photos', 'a.jpg', 'b.jpg', 'trip/a.jpg'.replace('/', '_')), []
    (photos/'masks').mkdir()
    for name in 'ab': save_mask(np.ones((24, 32)), photos/f'masks/{name}.png')
    (photos/'grey').mkdir()
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(photos/'grey/a.png')              # grey, of an image's name
    (photos/'scans').mkdir()
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(photos/'scans/page.png')          # grey, of its own name
    for name in ('IMG_1.HEIC', 'IMG_2.heic', 'raw.CR2', 'notes.txt'): (photos/name).touch()
    found = find_images([photos], note=notes.append)
    assert len(found) == 3 + 2 + 1 + 1                                                    # a note is no filter
    assert len(notes) == 3 and '2 .heic, 1 .cr2' in notes[0] and 'IMG_1.HEIC' in notes[0]
    assert {os.path.basename(note.split(':')[0]) for note in notes[1:]} == {'masks', 'grey'}
    assert 'look like masks are labelled as images (2, e.g. a.png)' in ''.join(notes)
    notes.clear()
    predict_files(predictor, [photos/'*.jpg'], photos/'masks2', note=notes.append)
    assert notes == []


def test_a_run_without_checkpoints_is_one_line(tmp_path):
    (tmp_path/'run').mkdir()
    line = error_of('dalnet_predict', tmp_path, '--checkpoint', tmp_path/'run', '--out', tmp_path/'out')
    assert 'give the folder of a checkpoint' in line
