"Files that nobody should trust: results stay in their folder, what is read is checked, nothing disappears unseen"
import io, json, os, shutil, signal, socket, struct, subprocess, sys, tarfile, time
from dataclasses import replace
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from dalnet.build import build_model, build_text
from dalnet.checkpoint import Checkpoint
from dalnet.cli import dalnet_data
from dalnet.coco_annotations import load_annotations, render_mask
from dalnet.config import PRESETS, read_config
from dalnet.dataset import read_lines, read_regions
from dalnet.encoder import read_weights
from dalnet.grid import read_grid
from dalnet.inference import Predictor
from dalnet.images import IMAGE_SUFFIXES, as_image, check_image, load_image, load_mask, open_image, save_mask
from dalnet.images import upright_size
from dalnet.label_files import predict_files, pseudo_label_files
from dalnet.shapes import SHAPE_CLASSES
from dalnet.tagged import TaggedImageDataset
from dalnet.text import TextEmbeddings
from dalnet.transforms import EvalTransform
from dalnet.voc import VOCDataset, _load_sbd
from dalnet.voc_tags import read_onehot
from test_bad_data import mine, one_line, picture, state, table  # noqa: F401, fixtures


@pytest.fixture(scope='module')
def checkpoint(shapes, tmp_path_factory):
    "A small untrained network; what it sees does not matter here"
    torch.manual_seed(0)
    config = replace(PRESETS['demo'], data=str(shapes), seg_start=1, test_scales=(1.,), long_side=96,
                     encoder_options=dict(depth=1, patch_size=16, img_size=96))
    text = build_text(config, SHAPE_CLASSES)
    return Checkpoint.save(tmp_path_factory.mktemp('run')/'iter_000002', build_model(config, text), config, text, 2)


@pytest.fixture(scope='module')
def predictor(checkpoint): return Predictor(checkpoint, 'cpu', flip=False)


def jpeg(seed=0, size=(32, 24), **options):
    "The bytes of a JPEG of noise"
    file, pixels = io.BytesIO(), np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file, 'JPEG', **options)
    return file.getvalue()


def archive(path, members):
    "Write (name, bytes) into a .tar, whatever the names"
    with tarfile.open(path, 'w') as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def names(folder): return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


RESULTS = ['.json', '.png', '_overlay.jpg']


# where results lie

def test_names_in_an_archive_lead_nowhere(predictor, tmp_path):
    away, out = tmp_path/'away', tmp_path/'deep/er/out'
    away.mkdir(), out.mkdir(parents=True)
    (away/'notes.png').write_text('mine')
    (out/'link').symlink_to(away)
    hostile = ['../../x.jpg', f'{away}/notes.jpg', 'link/y.jpg', 'a/../../z.jpg', 'ü'*125 + '.jpg']
    shard = archive(tmp_path/'shard.tar', [(name, jpeg(i)) for i, name in enumerate([*hostile, './good.jpg'])])
    before = state(away)
    done, _, failures = predict_files(predictor, [shard], out)
    assert (done, len(failures)) == (1, 5) and state(away) == before
    assert all('leads out of the folder' in line for line in failures[:4]) and 'shorten it' in failures[4]
    ours = [f'deep/er/out/{name}' for name in ('classes.txt', *(f'good{ending}' for ending in RESULTS))]
    assert names(tmp_path) == ['away/notes.png', *ours, 'shard.tar']


# pictures

def test_postscript_starts_no_program(tmp_path, monkeypatch):
    path, started = tmp_path/'a.jpg', []
    path.write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n')
    monkeypatch.setattr('subprocess.check_call', lambda *args, **options: started.append(args))
    for read in (load_image, check_image, as_image, lambda path: load_mask(path, 3)):
        one_line(lambda: read(path), 'a.jpg')
    assert not started and '.eps' not in IMAGE_SUFFIXES


@pytest.mark.parametrize('ending, options', [
    ('jpg', {}), ('png', {}), ('webp', {}), ('tif', {}), ('tif', dict(compression='tiff_lzw')),
    ('tif', dict(compression='jpeg'))])
@pytest.mark.parametrize('number', range(1, 9))
def test_turned_pictures(tmp_path, ending, options, number):
    pixels = np.kron(np.array([[250, 0], [80, 80], [80, 160]], np.uint8), np.ones((16, 16), np.uint8))
    upright, exif = Image.fromarray(pixels).convert('RGB'), Image.Exif()     # 32 wide, 48 high
    exif[0x0112] = number
    turn = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}.get(number, [])     # undoes what a viewer will do
    stored = upright.transpose(Image.Transpose(turn[0])) if turn else upright
    stored.save(tmp_path/f'a.{ending}', exif=exif, **options)
    with open_image(tmp_path/f'a.{ending}') as image:
        assert upright_size(image) == (48, 32)
        assert EvalTransform()(image)['image'].shape == (3, 48, 32)
    shown = np.asarray(load_image(tmp_path/f'a.{ending}'))[..., 0].astype(int)
    assert abs(shown - pixels).max() < 12


def test_pseudo_labels_of_turned_tiffs(checkpoint, tmp_path):
    exif, rows = Image.Exif(), ['image,tags']
    for number in (1, 6):
        exif[0x0112] = number
        Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(tmp_path/f'{number}.tif', exif=exif)
        rows.append(f'{number}.tif,disc')
    done = pseudo_label_files(checkpoint, tmp_path/'out', table(tmp_path, '\n'.join(rows)), scales=(1.,))
    assert done == (2, 0, [])
    assert [Image.open(tmp_path/f'out/{number}.png').size for number in (1, 6)] == [(64, 32), (32, 64)]


# whose files they are

def noise(folder, *names):
    "Write a JPEG of its own noise for each name"
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names): (folder/name).write_bytes(jpeg(i + len(str(folder))))
    return folder


@pytest.mark.parametrize('ending', RESULTS)
def test_a_users_file_stays(predictor, tmp_path, ending):
    photos, out = noise(tmp_path/'photos', 'holiday.jpg', 'b.jpg'), tmp_path/'out'
    out.mkdir()
    (out/f'holiday{ending}').write_bytes(b'{"mine": 1}')
    for expected in ((1, 0), (0, 1)):
        *done, failures = predict_files(predictor, [photos], out)
        assert tuple(done) == expected and len(failures) == 1
        assert f'holiday{ending}: not made by dalnet' in failures[0] and '--overwrite' in failures[0]
        assert (out/f'holiday{ending}').read_bytes() == b'{"mine": 1}'
    assert predict_files(predictor, [photos], out, overwrite=True) == (1, 1, [])
    assert predict_files(predictor, [photos], out) == (0, 2, [])


def test_two_sources_of_one_name(predictor, tmp_path):
    first, second, out = noise(tmp_path/'1', 'a.jpg'), noise(tmp_path/'twenty', 'a.jpg'), tmp_path/'out'
    assert predict_files(predictor, [first], out) == (1, 0, [])
    before = state(out)
    done, _, failures = predict_files(predictor, [second], out)
    assert done == 0 and len(failures) == 1 and state(out) == before
    assert f'replace those of {first}/a.jpg' in failures[0]
    first.rename(tmp_path/'moved')
    assert predict_files(predictor, [tmp_path/'moved'], out) == (0, 1, [])          # the same file elsewhere
    (tmp_path/'moved/a.jpg').write_bytes(jpeg(77))
    os.utime(out/'a.json', (0, 0))
    assert predict_files(predictor, [second], out, overwrite=True)[0] == 1


def test_ground_truth_is_no_pseudo_label(checkpoint, shapes, tmp_path):
    out, run = tmp_path/'out', dict(split='val', scales=(1.,))
    done, _, _ = pseudo_label_files(checkpoint, out, **run)
    name = sorted(path.stem for path in out.glob('*.png'))[0]
    truth = (shapes/f'SegmentationClass/{name}.png').read_bytes()
    (out/f'{name}.png').write_bytes(truth)
    again, before, failures = pseudo_label_files(checkpoint, out, **run)
    assert (again, before) == (0, done - 1) and f'{name}.png: not made by dalnet' in failures[0]
    assert (out/f'{name}.png').read_bytes() == truth
    assert pseudo_label_files(checkpoint, out, overwrite=True, **run) == (1, done - 1, [])


# whole or not at all

FULL = '''
import resource, signal, sys
from dalnet.inference import Predictor
from dalnet.label_files import predict_files
predictor = Predictor(sys.argv[1], 'cpu', flip=False)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
print(predict_files(predictor, [sys.argv[2]], sys.argv[3]))
'''


def test_a_full_disk_leaves_nothing_torn(checkpoint, predictor, tmp_path):
    photos, out = tmp_path/'photos', tmp_path/'out'
    photos.mkdir()
    (photos/'a.jpg').write_bytes(jpeg(size=(200, 200)))                              # an overlay of some 30 kB
    done = subprocess.run([sys.executable, '-c', FULL, checkpoint, photos, out, '8000'], capture_output=True, text=True)
    assert done.returncode == 0 and '(0, 0, [' in done.stdout and 'too large' in done.stdout, done
    assert not (out/'a_overlay.jpg').exists() and not list(out.glob('.part-*'))
    assert predict_files(predictor, [photos], out) == (1, 0, [])


def test_incomplete_results_are_made_again_and_only_our_leftovers_go(predictor, tmp_path):
    photos, out = noise(tmp_path/'photos', 'a.jpg', 'b.jpg'), tmp_path/'out'
    predict_files(predictor, [photos], out)
    whole = {path: path.read_bytes() for path in out.iterdir()}
    (out/'a_overlay.jpg').unlink()
    (out/'b.png').write_bytes(whole[out/'b.png'][:-20])
    (out/'.part-of-mine').mkdir()
    (out/'.part-of-mine/x').touch(), (out/'.part-99999999-a.png').touch(), (out/'.part-1-a.png').touch()
    assert predict_files(predictor, [photos], out) == (2, 0, [])
    assert {path: path.read_bytes() for path in whole} == whole
    assert names(out) == sorted(['.part-1-a.png', '.part-of-mine/x', *(path.name for path in whole)])


# what is read

def odd_files(folder, ending):
    "Files that are none, under names with this ending"
    os.mkfifo(folder/f'pipe{ending}')
    (folder/f'loop{ending}').symlink_to(folder/f'loop{ending}')
    (folder/f'zero{ending}').symlink_to('/dev/zero')
    (folder/f'dead{ending}').symlink_to(folder/'nothing')
    with socket.socket(socket.AF_UNIX) as server: server.bind(str(folder/f'sock{ending}'))
    with open(folder/f'huge{ending}', 'wb') as file: file.truncate(2**40)
    return sorted(folder.glob(f'*{ending}'))


def test_odd_files_are_failed_images_of_a_batch(predictor, tmp_path):
    odd = odd_files(noise(tmp_path/'p', 'good.jpg'), '.jpg')
    for inputs in ([tmp_path/'p'], odd, [tmp_path/'p/*.jpg']):
        done, before, failures = predict_files(predictor, inputs, tmp_path/'out')
        assert done + before == 1 and len(failures) == 6, failures
        assert all('\n' not in line and '; ' in line for line in failures)


@pytest.mark.parametrize('ending', ['.csv', '.jsonl', '.json', '.xml', '.parquet', '.tar', '.npy', '.txt', '.png'])
def test_odd_files_as_tables_lists_and_masks(tmp_path, ending):
    readers = {'.npy': read_onehot, '.txt': read_lines, '.png': lambda path: load_mask(path, 3)}
    for path in odd_files(tmp_path, ending):
        if path.stem == 'huge' and ending in ('.csv', '.jsonl'): continue            # read in blocks, of any size
        one_line(lambda: readers.get(ending, TaggedImageDataset)(path), path.name)


def test_odd_annotations(shapes, tmp_path):
    odd = odd_files(tmp_path, '.json')
    for path in odd: one_line(lambda: load_annotations(path), path.name)
    data = shutil.copytree(shapes, tmp_path/'voc')
    victim = sorted((data/'Annotations').iterdir())[0]
    victim.unlink(), os.mkfifo(victim)
    assert sum(len(VOCDataset(data, split, skip_bad=True).skipped) for split in ('train', 'val')) == 1


# deep greys

def tiff(path, pixels, bits):
    "A TIFF of one strip with whole numbers, packed at 12 bits or as the array is"
    data = pixels.tobytes()
    if bits == 12:
        a, b = pixels.ravel()[::2].astype(int), pixels.ravel()[1::2].astype(int)
        data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    entries = [(256, pixels.shape[1]), (257, pixels.shape[0]), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1),
               (278, pixels.shape[0]), (279, len(data)), (339, 3 if pixels.dtype.kind == 'f' else 1)]
    start = 8 + len(data) + len(data) % 2
    table = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in entries)
    head, count = b'II*\0' + struct.pack('<I', start), struct.pack('<H', len(entries))
    path.write_bytes(head + data.ljust(start - 8, b'\0') + count + table + bytes(4))
    return path


RAMP = np.arange(64).reshape(4, 16)/63


@pytest.mark.parametrize('white, kind, bits', [
    (4095, '<u2', 12), (4095, '<u2', 16), (1023, '<u2', 16), (65535, '<u2', 16), (255, '<u2', 16), (10**6, '<u4', 32),
    (2**31 - 1, '<u4', 32), (1, '<f4', 32), (4000, '<f4', 32), (1e-3 + 1, '<f4', 32)])
def test_deep_greys_keep_their_range(tmp_path, white, kind, bits):
    image = load_image(tiff(tmp_path/'a.tif', (RAMP*white).astype(kind), bits))
    assert abs(np.asarray(image)[..., 0] - 255*RAMP).max() <= 1.5


@pytest.mark.parametrize('value, kind', [
    (np.nan, '<f4'), (np.inf, '<f4'), (-1, '<f4'), (2**32 - 1, '<u4')])
def test_greys_without_a_range_are_one_line(predictor, tmp_path, value, kind):
    pixels = RAMP.astype(kind)
    pixels[0, 0] = value
    path = tiff(tmp_path/'a.tif', pixels, 32)
    one_line(lambda: load_image(path), 'a.tif', 'pixels range')
    assert predict_files(predictor, [path], tmp_path/'out')[0] == 0


# nothing disappears unseen

def test_members_of_an_archive(predictor, tmp_path):
    png = io.BytesIO()
    save_mask(np.zeros((24, 32)), png)
    with tarfile.open(tmp_path/'a.tar', 'w') as file:
        for name, data in [('a.seg.png', png.getvalue()), ('a.jpg', jpeg()), ('a.cls', b'0'), ('b.v1.jpg', jpeg(1)),
                           ('b.v2.jpg', jpeg(2)), ('b.cls', b'1')]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        kinds = {'link.jpg': tarfile.SYMTYPE, 'hard.jpg': tarfile.LNKTYPE, 'pipe.jpg': tarfile.FIFOTYPE}
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, 'a.jpg'
            file.addfile(info)
    done, _, failures = predict_files(predictor, [tmp_path/'a.tar'], tmp_path/'out')
    assert (done, len(failures)) == (3, 3) and all('pack plain files' in line for line in failures)
    assert np.asarray(Image.open(tmp_path/'out/a_overlay.jpg')).std() > 20           # the picture, not its mask
    ds = TaggedImageDataset(tmp_path/'a.tar', skip_bad=True)
    assert list(ds.names) == ['a', 'b.v1', 'b.v2'] and len(ds.skipped) == 3


@pytest.mark.parametrize('cut', [512, 1024, 1536])
def test_an_archive_that_ends_early_or_goes_on(predictor, tmp_path, cut):
    whole = archive(tmp_path/'a.tar', [(f'{i}.jpg', jpeg(i)) for i in range(3)]).read_bytes()
    starts = [i for i in range(0, len(whole), 512) if whole[i + 257:i + 262] == b'ustar']
    for data in (whole[:starts[2]], whole[:starts[2] + cut], whole[:starts[1]] + b'x'*cut + whole[starts[1]:], whole*2):
        (tmp_path/'b.tar').write_bytes(data)
        one_line(lambda: TaggedImageDataset(tmp_path/'b.tar', allow_untagged=True, skip_bad=True), 'b.tar')
        one_line(lambda: predict_files(predictor, [tmp_path/'b.tar'], tmp_path/'out'), 'b.tar')


def test_a_split_that_is_misspelt_is_named(mine):
    path = table(mine.parent, 'image,tags,split\na.jpg,cat,train\nb.jpg,dog,trian\nc.jpg,cat,val\n')
    lines = TaggedImageDataset(path).skipped
    assert len(lines) == 1 and '1 images of the split "trian"' in lines[0]
    assert not TaggedImageDataset(path, 'trian').skipped and not TaggedImageDataset(path, part='val').skipped


def test_one_image_by_two_paths(mine):
    rows = f'a.jpg,cat\n{mine.parent}/a.jpg,dog\n{mine.parent}//b.jpg,dog\n.//b.jpg,cat\n'
    path = table(mine.parent, f'image,tags\n{rows}')
    one_line(lambda: TaggedImageDataset(path), 'listed twice (see also row')
    left = TaggedImageDataset(path, skip_bad=True)
    assert list(left.names) == ['a', 'b'] and len(left.skipped) == 2


def annotations(folder, change):
    "An annotation file of one crowd, after a change to it"
    shape = [[0, 0, 8, 0, 8, 8]]
    data = dict(images=[dict(id=1, file_name='a.jpg', height=24, width=32)], categories=[dict(id=3, name='cat')],
                annotations=[dict(id=5, image_id=1, category_id=3, iscrowd=0, area=32, segmentation=shape)])
    change(data)
    path = folder/'instances_val.json'
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize('crowd, value', [('0', 1), ('1', 255), (False, 1), (None, 1), (1.0, 255)])
def test_numbers_as_text_in_annotations(tmp_path, crowd, value):
    coco = load_annotations(annotations(tmp_path, lambda data: data['annotations'][0].update(iscrowd=crowd, area='32')))
    assert render_mask((24, 32), coco.imgToAnns[1], {3: 1}).max() == value


@pytest.mark.parametrize('change, words', [
    (lambda data: data['annotations'][0].update(iscrowd='no'), 'iscrowd "no"'),
    (lambda data: data['annotations'][0].update(iscrowd=2), 'iscrowd 2'),
    (lambda data: data['annotations'][0].update(area='large'), 'area "large"'),
    (lambda data: data['annotations'][0].update(area=[1]), 'area [1]'),
    (lambda data: data['images'].append(dict(data['images'][0], file_name='b.jpg')), 'image 1 is listed twice'),
    (lambda data: data['categories'].append(dict(id=3, name='dog')), 'category 3 is listed twice')])
def test_annotations_that_contradict(tmp_path, change, words):
    one_line(lambda: load_annotations(annotations(tmp_path, change)), 'instances_val.json', words)


# bounds

def seconds(work, *words):
    "The processor time of an error of one line"
    start = time.process_time()
    assert len(one_line(work, *words)) < 1000
    return time.process_time() - start


def test_limits_are_quick_and_named(tmp_path, predictor):
    wide = table(tmp_path, ','.join(f'c{i}' for i in range(10**6)) + '\n', 'wide.csv')
    assert seconds(lambda: TaggedImageDataset(wide), '1,000,000 columns', '10,000') < 5
    header = ['image', 'tags', *(f'c{i}' for i in range(9000)), 'c7']
    wide = table(tmp_path, ','.join(header) + '\n')
    assert seconds(lambda: TaggedImageDataset(wide), 'two columns are called "c7"') < 5
    shape = dict(counts='o'*10**6, size=[24, 32])
    long = dict(id=1, category_id=3, iscrowd=1, area=1, segmentation=shape)
    assert seconds(lambda: render_mask((24, 32), [long], {3: 1}), 'too many digits') < 5
    Image.new('1', (13_300, 13_300)).save(tmp_path/'large.png')
    assert (tmp_path/'large.png').stat().st_size < 30_000
    assert seconds(lambda: load_image(tmp_path/'large.png'), 'large.png', '120,000,000 pixels') < 1
    assert seconds(lambda: load_mask(tmp_path/'large.png', 3), 'large.png', '120,000,000 pixels') < 1
    assert predict_files(predictor, [tmp_path/'large.png'], tmp_path/'out')[0] == 0


# one line each

DEEP = '['*200_000 + ']'*200_000


@pytest.mark.parametrize('name, text', [
    ('a.json', DEEP), ('a.json', '{"samples": ' + DEEP + '}'), ('a.json', '{"samples": [{"filepath": "a.jpg"}, 3]}'),
    ('a.json', '{"labels": {"a": {"label": 1}, "b": [{}]}}'), ('a.json', '[{"data": 3}]'), ('a.jsonl', DEEP),
    ('a.jsonl', '{"image": "a.jpg", "tags": ' + '['*400 + ']'*400 + '}'), ('a.jsonl', '{"image": ["a"], "tags": 1}'),
    ('a.csv', 'image,tags,tags\na.jpg,cat,dog\n'), ('a.csv', b'image,tags\n\xff\xfe.jpg,cat\n')])
def test_odd_tables_are_one_line(mine, name, text):
    one_line(lambda: TaggedImageDataset(table(mine.parent, text, name)), name)


def test_parquet_with_a_column_twice(mine):
    arrays = [pa.array([value]) for value in ('a.jpg', 'cat', 'dog')]
    columns = pa.Table.from_arrays(arrays, ['image', 'tags', 'tags'])
    pa.parquet.write_table(columns, mine.parent/'a.parquet')
    one_line(lambda: TaggedImageDataset(mine.parent/'a.parquet'), 'two columns are called "tags"')


def test_sparse_members(predictor, tmp_path):
    with open(tmp_path/'a.jpg', 'wb') as file: file.truncate(10**6), file.write(jpeg())
    subprocess.run(['tar', '-cSf', tmp_path/'a.tar', '-C', tmp_path, 'a.jpg'], check=True)
    done, _, failures = predict_files(predictor, [tmp_path/'a.tar'], tmp_path/'out')
    assert done == 0 and len(failures) == 1


ODD_ARRAYS = [np.array(3.), np.array('x'), np.array(None), np.zeros((4, 5), 'U1'), np.zeros((3, 0))]


@pytest.mark.parametrize('array', ODD_ARRAYS)
def test_odd_arrays(tmp_path, array):
    one_line(lambda: as_image(array))
    np.savez(tmp_path/'a.npz', names=np.array('cat'), prompts=np.array('cat'), fg=np.array(1.), bg=np.array(1.))
    one_line(lambda: TextEmbeddings.load(tmp_path/'a.npz'), 'a.npz')


def test_odd_names(predictor, tmp_path):
    names = [b'\xff\xfe.jpg', b'red\x1b[31m.jpg', b'two\nlines.jpg', b'x'*239 + b'.jpg', b'y'*251 + b'.jpg']
    folder = tmp_path/'photos'
    folder.mkdir()
    for i, name in enumerate(names): (folder/os.fsdecode(name)).write_bytes(jpeg(i))
    done, _, failures = predict_files(predictor, [folder], tmp_path/'out')
    assert done == 4 and len(failures) == 1 and 'shorten it' in failures[0] and failures[0].isprintable()
    (folder/'bad\x1b\udcff.jpg').write_bytes(b'no image')
    line = predict_files(predictor, [folder], tmp_path/'out')[2][0]
    assert line.isprintable() and r'bad\x1b\udcff.jpg' in line


def test_an_out_folder_without_a_name(predictor, checkpoint, tmp_path):
    for out in ('', table(tmp_path, '', 'file')):
        one_line(lambda: predict_files(predictor, [tmp_path], out), 'out')
        one_line(lambda: pseudo_label_files(checkpoint, out), 'out')


def test_problems_are_summed_up(tmp_path, capsys):
    path = table(tmp_path, 'image,tags\na.jpg,cat\n' + ''.join(f'no{i}.jpg,cat\n' for i in range(500)))
    (tmp_path/'a.jpg').write_bytes(jpeg())
    for options, lines in (([], 20), (['--all'], 500)):
        with pytest.raises(SystemExit): dalnet_data(['tags', str(path), '--quick', *options])
        out = capsys.readouterr().out
        assert out.count('problem: ') == lines and ('480 more; --all' in out) == (not options)


# files that are none: reading a pipe waits for ever

READERS = dict(
    config=lambda path: read_config(path), grid=lambda path: read_grid(path),
    sbd=lambda path: _load_sbd(path, 2, (8, 8)),
    mask=lambda path: load_mask(path, 2), regions=lambda path: read_regions(path.parent, path.stem, (8, 8)),
    weights=lambda path: read_weights(path), text=lambda path: TextEmbeddings.load(path), lines=read_lines,
    checkpoint=lambda path: Checkpoint.load(path))


@pytest.mark.parametrize('kind', ['pipe', 'device', 'folder'])
@pytest.mark.parametrize('name', READERS)
def test_a_pipe_a_device_or_a_folder_is_one_line(name, kind, tmp_path):
    path = tmp_path/'x.png'
    if kind == 'pipe': os.mkfifo(path)
    elif kind == 'device': path.symlink_to('/dev/zero')
    else: path.mkdir()
    def too_long(number, frame): raise BaseException('it waits')
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(20)
    try: one_line(lambda: READERS[name](path), 'x.png')
    finally: signal.alarm(0), signal.signal(signal.SIGALRM, before)


def test_a_pipe_among_the_masks_of_sbd(shapes, tmp_path):
    data, sbd = shutil.copytree(shapes, tmp_path/'data'), tmp_path/'sbd'
    (sbd/'cls').mkdir(parents=True)
    name = (data/'ImageSets/Segmentation/val.txt').read_text().split()[0]
    (data/f'SegmentationClass/{name}.png').unlink()
    os.mkfifo(sbd/f'cls/{name}.mat')
    one_line(lambda: list(VOCDataset(data, 'val', masks=True, sbd=sbd)), name)


@pytest.mark.parametrize('at', range(8))
def test_a_flipped_bit_of_a_mask_is_an_error(at, tmp_path):
    save_mask(np.kron(np.eye(8, dtype=np.uint8), np.ones((5, 7), np.uint8)), tmp_path/'mask.png')
    data = bytearray((tmp_path/'mask.png').read_bytes())
    data[data.index(b'IDAT') + 4 + at*4] ^= 1
    (tmp_path/'mask.png').write_bytes(data)
    one_line(lambda: load_mask(tmp_path/'mask.png', 1), 'mask.png')
