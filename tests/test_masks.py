"Masks to score on: found, checked before the first step, and left out of the scores where they are bad"
import csv
import json
import shutil
import pytest
from PIL import Image
from dalnet.check import check_tagged
from dalnet.core import InputError
from dalnet.evaluation import report_scores
from dalnet.shapes import SHAPE_CLASSES
from dalnet.tagged import TaggedImageDataset


@pytest.fixture
def mine(shapes, tmp_path):
    "Six tagged images in images/, their masks in masks/"
    for folder in ('images', 'masks'): (tmp_path/folder).mkdir()
    names = sorted(path.stem for path in (shapes/'SegmentationClass').glob('*.png'))[:6]
    for name in names:
        shutil.copy(shapes/f'JPEGImages/{name}.jpg', tmp_path/'images')
        shutil.copy(shapes/f'SegmentationClass/{name}.png', tmp_path/'masks')
    with open(tmp_path/'tags.csv', 'w', newline='') as file:
        rows = [(f'images/{name}.jpg', 'disc;ring') for name in names]
        csv.writer(file).writerows([('image', 'tags'), *rows])
    (tmp_path/'classes.txt').write_text('\n'.join(SHAPE_CLASSES))
    return tmp_path, names


def opened(mine, **options):
    folder, _ = mine
    return TaggedImageDataset(folder/'tags.csv', classes=SHAPE_CLASSES, masks=folder/'masks', **options)


def test_masks_without_the_folders_of_the_names(mine):
    folder, names = mine
    flat = [item['mask'] for item in opened(mine)]
    (folder/'masks/images').mkdir()
    for name in names: (folder/f'masks/{name}.png').rename(folder/f'masks/images/{name}.png')
    assert all(a.equal(b) for a, b in zip(flat, [item['mask'] for item in opened(mine)], strict=True))


def test_a_missing_mask_names_both_places(mine):
    folder, names = mine
    (folder/f'masks/{names[0]}.png').unlink()
    with pytest.raises(InputError) as error: opened(mine)
    assert f'masks/images/{names[0]}.png' in str(error.value) and f'as {folder}/masks/{names[0]}.png' in str(error.value)
    assert len(opened(mine, skip_bad=True)) == 5


def test_two_images_do_not_share_a_mask(mine):
    folder, names = mine
    (folder/'more').mkdir()
    shutil.copy(folder/f'images/{names[0]}.jpg', folder/'more')
    with open(folder/'tags.csv', 'a') as file: file.write(f'more/{names[0]}.jpg,disc\n')
    with pytest.raises(InputError, match='the only mask of two images'): opened(mine)


def test_masks_of_another_size_are_found_without_decoding(mine):
    folder, names = mine
    path = folder/f'masks/{names[2]}.png'
    Image.open(path).resize((50, 40), 0).save(path)
    with pytest.raises(InputError, match='the mask is 50x40, the image 96x96'): opened(mine)
    _, problems = check_tagged(folder/'tags.csv', mask_folder=folder/'masks')
    assert any('50x40' in line for line in problems)


def test_a_broken_mask_is_reported_and_the_others_are_scored(mine, tmp_path, capsys):
    from dalnet.encoder import Encoder
    from dalnet.model import DALNet
    from dalnet.text import encode_text
    folder, names = mine
    data = (folder/f'masks/{names[3]}.png').read_bytes()
    (folder/f'masks/{names[3]}.png').write_bytes(data[:-30])
    assert any(names[3] in line for line in check_tagged(folder/'tags.csv', mask_folder=folder/'masks')[1])
    encoder = Encoder('vit_tiny_patch16_224', pretrained=False, depth=1)
    model = DALNet(encoder, encode_text(SHAPE_CLASSES, model='hash'), text_projection='learnt')
    report_scores(model, opened(mine), 'cpu', tmp_path/'scores.json', seg=False, cam_scales=(1.,), flip=False)
    found, printed = json.loads((tmp_path/'scores.json').read_text()), capsys.readouterr()
    assert found['images'] == 5 and len(found['not_scored']) == 1 and names[3] in found['not_scored'][0]
    assert printed.err.count('not scored: ') == 1 and '5 images of "all"' in printed.out
    for name in names: (folder/f'masks/{name}.png').write_bytes(data[:-30])
    with pytest.raises(InputError, match='none of the 6 images can be scored'):
        report_scores(model, opened(mine), 'cpu', tmp_path/'none.json', seg=False, cam_scales=(1.,), flip=False)
