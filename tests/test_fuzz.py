"""Absurd, damaged and hostile files by the hundred: a reader returns a sane value, or one line that names the file

It opens nothing outside of the folder, writes nowhere but into the cache, runs nothing, and ends. The same cases every
time; `DALNET_FUZZ=10000 pytest tests/test_fuzz.py` runs 10,000 of them instead of some hundreds.
"""
import csv, io, json, os, random, signal, sys, tarfile, tempfile, zipfile
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from dalnet.build import build_model, build_text
from dalnet.checkpoint import Checkpoint, _seal, has_segmentation
from dalnet.coco import COCODataset
from dalnet.config import PRESETS, read_config, write_config
from dalnet.core import InputError
from dalnet.data import open_dataset
from dalnet.dataset import read_regions
from dalnet.encoder import read_weights
from dalnet.grid import read_grid
from dalnet.image_files import find_images
from dalnet.images import as_image, check_image, load_image, load_mask, save_mask
from dalnet.tagged import TaggedImageDataset
from dalnet.text import TextEmbeddings, encode_text
from dalnet.voc import VOCDataset
from dalnet.voc_tags import read_onehot
hypothesis = pytest.importorskip('hypothesis', reason='hypothesis makes the cases; pip install -e ".[dev]"')
from hypothesis import HealthCheck, Phase, given, settings, strategies as st  # noqa: E402, it may be missing

CASES = int(os.environ.get('DALNET_FUZZ', 900))


def fuzzed(share, **cases):
    "Run a test on its share of the cases; all shares add up to 131"
    quiet = settings(max_examples=max(1, CASES*share//131), derandomize=True, database=None, deadline=None,
                     suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
                     phases=[Phase.explicit, Phase.generate, Phase.shrink])
    return lambda test: quiet(given(**cases)(test))


# what a reader must not do

class Hang(BaseException): "A reader takes too long; no `except Exception` catches this"


def _hang(number, frame): raise Hang


SEEN, ALLOWED = [], []  # what is done outside of the folders that may be touched; (folder, may be written)
_RUNS = ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'os.startfile', 'pickle.find_class',
         'socket.connect', 'socket.getaddrinfo')
_CHANGES = ('os.remove', 'os.rename', 'os.mkdir', 'os.rmdir', 'os.link', 'os.symlink', 'os.chmod', 'os.truncate')
_PYTHON = tuple(os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, Path(__file__).parents[1], '/proc'))


def _inside(path, writes):
    "Whether a path may be opened, or changed"
    path = os.path.realpath(os.fsdecode(path))
    if not writes and path.startswith((*_PYTHON, '/usr/', '/dev/null', '/sys/')): return True
    return any(path == folder or path.startswith(f'{folder}/') for folder, may in ALLOWED if may or not writes)


def _audit(event, args):
    "Note what a reader does that it must not do"
    if not ALLOWED: return
    if event in _RUNS: SEEN.append((event, str(args)[:200]))
    if event == 'open' and isinstance(args[0], (str, bytes)):
        writes = bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not _inside(args[0], writes): SEEN.append((event, args[0], writes))
    if event in _CHANGES:
        for path in args[:2]:
            if isinstance(path, (str, bytes)) and not _inside(path, True): SEEN.append((event, path))


sys.addaudithook(_audit)


@contextmanager
def workplace():
    "A folder of three small images, with a picture beside it that no reader may open, and a cache of its own"
    before = os.environ['DALNET_CACHE']
    with tempfile.TemporaryDirectory(prefix='dalnet_fuzz_') as base:
        base = Path(os.path.realpath(base))
        data = base/'data'
        data.mkdir()
        for path in (base/'outside.jpg', *(data/f'{name}.jpg' for name in 'abc')): path.write_bytes(JPEG)
        os.environ['DALNET_CACHE'] = str(base/'cache')
        try: yield data
        finally: os.environ['DALNET_CACHE'] = before


def read(call, data, name=None, seconds=20):
    "What a reader returns, or None if it raises an `InputError`, which must be one line that names the file"
    SEEN.clear()
    ALLOWED[:] = [(str(data), False), (str(data.parent/'cache'), True)]
    before = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: return call()
    except InputError as error:
        line = str(error)
        assert line.isprintable() and len(line) < 3000, line
        assert name is None or name in line, line
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        ALLOWED.clear()
        assert not SEEN, SEEN


# what is given to the readers

def encoded(kind, mode='RGB', size=(24, 16), **options):
    "The bytes of an image of noise"
    file, channels = io.BytesIO(), len(Image.new(mode, (1, 1)).getbands())
    kinds = {'I;16': np.uint16, 'I': np.int32, 'F': np.float32}
    pixels = np.random.default_rng(0).integers(0, 2 if mode == '1' else 200, (size[1], size[0], channels))
    array = pixels.astype(kinds.get(mode, np.uint8)).squeeze(-1) if channels == 1 else pixels.astype(np.uint8)
    image = Image.new(mode, size)
    image = Image.fromarray(array*255).convert('1') if mode == '1' else Image.frombytes(mode, size, array.tobytes())
    image.save(file, kind, **options)
    return file.getvalue()


JPEG = encoded('JPEG')
PICTURES = {'jpg': JPEG, 'prog.jpg': encoded('JPEG', progressive=True), 'cmyk.jpg': encoded('JPEG', 'CMYK'),
            'grey.jpg': encoded('JPEG', 'L'), 'png': encoded('PNG'), 'alpha.png': encoded('PNG', 'RGBA'),
            'p.png': encoded('PNG', 'P'), 'la.png': encoded('PNG', 'LA'), 'i16.png': encoded('PNG', 'I;16'),
            'bit.png': encoded('PNG', '1'), 'tif': encoded('TIFF'), 'lzw.tif': encoded('TIFF', compression='tiff_lzw'),
            'f.tif': encoded('TIFF', 'F'), 'i.tif': encoded('TIFF', 'I'), 'cmyk.tif': encoded('TIFF', 'CMYK'),
            'jpg.tif': encoded('TIFF', compression='jpeg'), 'webp': encoded('WEBP'), 'gif': encoded('GIF', 'P'),
            'bmp': encoded('BMP'), 'ppm': encoded('PPM'), 'pcx': encoded('PCX'), 'tga': encoded('TGA'),
            'rle.tga': encoded('TGA', compression='tga_rle'), 'sgi': encoded('SGI'), 'jp2': encoded('JPEG2000')}

WORDS = ['a.jpg', 'b.jpg', 'c.jpg', 'a', '', ' ', '.', '..', '../outside.jpg', 'ROOT/../outside.jpg', 'ROOT/a.jpg',
         'x/../../outside.jpg', '..\\outside.jpg', '/etc/hostname', './a.jpg', 'a.jpg/', './/b.jpg', 'a\0.jpg', '\0',
         'cat', 'dog', 'cat;dog', ';', 'cat;cat', 'background', '"', "'", '"cat', 'two\nlines.jpg', '\r', '\t', ',',
         '{"choices": 3}', '{"choices": "cat"}', '{"choices": ["cat", 3]}', '{"choices": ["cat"]}', '{"choices"',
         '{"choices": null}', 'http://host/a.jpg', 's3://x/..', '/data/local-files/?d=../outside.jpg',
         '/data/local-files/?d=/etc/hostname', '/data/upload/1/%2e%2e/outside.jpg', 'train', 'val', '\u2028',
         '\x1b[31m', 'ä', 'ﬁ', '\ufeff', '1', '-1', '1e999', 'nan', 'x'*300, 'null', 'true', '%00', '٣', '\x85',
         '*', 'a*.jpg', '[']
word = st.sampled_from(WORDS) | st.text(max_size=8)
plain = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(
    [0, 1, 2**31, 2**63, 2**64, -2**63, 10**400, .5, -.5, 1e308, float('nan'), float('inf'), '\ud800', 'a\udfff.jpg'])
scalar = plain | word
KEYS = ['image', 'tags', 'split', 'label', 'labels', 'file_name', 'id', 'x', 'data', 'choices', 'image ', 'Image']
value = st.recursive(scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=3), max_leaves=6)


def paths_of(tree, path=()):
    "The paths of all nodes of nested lists and dicts"
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in items: yield from paths_of(item, (*path, key))


@st.composite
def mutated(draw, tree, most=3):
    "A document, copied and changed in a few nodes: replaced, removed, repeated, or joined by another"
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(0, most))):
        *path, key = draw(st.sampled_from(list(paths_of(tree)))) or (None,)
        if key is None:
            if not draw(st.integers(0, 9)): tree = draw(value)
            continue
        node = tree
        for step in path: node = node[step]
        change = draw(st.sampled_from(['replace', 'replace', 'replace', 'remove', 'repeat', 'add']))
        if change == 'remove': del node[key]
        elif isinstance(node, list) and change in ('repeat', 'add'):
            node.insert(draw(st.integers(0, len(node))), node[key] if change == 'repeat' else draw(value))
        elif change == 'add': node[draw(st.sampled_from(KEYS))] = draw(value)
        else: node[key] = draw(value)
    return tree


@st.composite
def damaged(draw, data, most=3):
    "Bytes, changed in a few places: overwritten, cut, removed, repeated, inserted"
    data = bytearray(data)
    for _ in range(draw(st.integers(0, most))):
        at, n = draw(st.integers(0, max(0, len(data) - 1))), draw(st.sampled_from([1, 1, 1, 2, 4, 16, 200]))
        change = draw(st.sampled_from(['set', 'set', 'flip', 'flip', 'fill', 'cut', 'remove', 'repeat', 'insert']))
        if change == 'set': data[at:at + n] = draw(st.binary(min_size=n, max_size=n))
        elif change == 'flip' and data: data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == 'fill':
            data[at:at + n] = bytes([draw(st.sampled_from([0, 1, 127, 128, 255]))])*len(data[at:at + n])
        elif change == 'cut': del data[at:]
        elif change == 'remove': del data[at:at + n]
        elif change == 'repeat': data[at:at] = data[at:at + n]
        elif change == 'insert': data[at:at] = draw(st.binary(max_size=n))
    return bytes(data)


def rooted(value, data):
    "Put the folder's name where a document says ROOT"
    if isinstance(value, str): return value.replace('ROOT', str(data))
    if isinstance(value, list): return [rooted(item, data) for item in value]
    return {rooted(key, data): rooted(item, data) for key, item in value.items()} if isinstance(value, dict) else value


def check_dataset(dataset):
    "What every dataset that opens must hold"
    names = [str(name) for name in dataset.names]
    assert len(set(names)) == len(names) == dataset.tags.shape[0] > 0
    assert dataset.tags.shape[1] == len(dataset.classes) == len(set(dataset.classes))
    assert all(name and '..' not in name.split('/') and not name.startswith('/') for name in names), names
    for i in range(min(4, len(dataset))):
        row = dataset.tag_row(i)
        assert row.shape == (len(dataset.classes),) and set(row.tolist()) <= {0, 1}
        try: item = dataset[i]
        except InputError: continue
        assert item['image'].shape[0] == 3 and torch.isfinite(item['image']).all() and item['name'] == names[i]


def tags_by_name(dataset):
    "Image -> the set of its tags"
    return {str(dataset.names[i]): {name for name, tag in zip(dataset.classes, dataset.tag_row(i)) if tag}
            for i in range(len(dataset))}


# tables and exports

def open_tags(path, skip_bad, allow):
    dataset = TaggedImageDataset(path, skip_bad=skip_bad, allow_untagged=allow)
    check_dataset(dataset)
    return dataset


header = st.sampled_from([['image', 'tags'], ['image', 'tags', 'split'], ['file_name', 'label'],
                          ['x', 'Image ', 'Tags'], ['image', 'tags', 'tags'], ['"image"', 'tags'],
                          ['image']]) | st.lists(word, max_size=4)
rows = st.lists(st.lists(word, min_size=1, max_size=4), max_size=5) | st.lists(
    st.tuples(st.sampled_from(['a.jpg', 'b.jpg', 'c.jpg']), word).map(list), min_size=1, max_size=3)
ways = dict(skip_bad=st.booleans(), allow=st.booleans())


def text_table(header, rows, sep, end):
    file = io.StringIO()
    csv.writer(file, delimiter=sep, lineterminator=end).writerows([header, *rows])
    return file.getvalue()


def expected(header, rows):
    "The tags of each image as a simple reader sees them; None where there is more to it"
    cells = [cell for row in [header, *rows] for cell in row]
    if header != ['image', 'tags'] or any(sign in cell for cell in cells for sign in '{/\\\0\r'): return None
    if any(len(row) != 2 or not row[0].strip() for row in rows): return None
    return {os.path.splitext(image.strip(' '))[0]: {tag.strip() for tag in tags.split(';')} - {''}
            for image, tags in rows}


@fuzzed(14, header=header, rows=rows, kind=st.sampled_from(['csv', 'tsv']), end=st.sampled_from(['\n', '\r\n', '\r']),
        damage=st.booleans(), data_=st.data(), **ways)
def test_text_tables(header, rows, kind, end, damage, data_, skip_bad, allow):
    with workplace() as data:
        header, rows = rooted(header, data), rooted(rows, data)
        content = text_table(header, rows, ',' if kind == 'csv' else '\t', end).encode()
        if damage: content = data_.draw(damaged(content))
        (data/f'tags.{kind}').write_bytes(content)
        dataset = read(lambda: open_tags(data/f'tags.{kind}', skip_bad, allow), data, f'tags.{kind}')
        if dataset and not damage and not skip_bad and (known := expected(header, rows)) is not None:
            assert tags_by_name(dataset) == known


record = mutated(dict(image='a.jpg', tags=['cat', 'dog'], split='train'))


@fuzzed(8, records=st.lists(record, max_size=4), damage=st.booleans(), data_=st.data(), **ways)
def test_json_lines(records, damage, data_, skip_bad, allow):
    with workplace() as data:
        content = ''.join(json.dumps(rooted(record, data)) + '\n' for record in records).encode()
        if damage: content = data_.draw(damaged(content))
        (data/'tags.jsonl').write_bytes(content)
        read(lambda: open_tags(data/'tags.jsonl', skip_bad, allow), data, 'tags.jsonl')


def _column(kind, words):
    "A column of a Parquet file of any type, or strings where the values do not fit it"
    try: return pa.array(words, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError): return pa.array([ascii(word) for word in words])


kinds = st.sampled_from([pa.string(), pa.large_string(), pa.binary(), pa.list_(pa.string()), pa.large_list(pa.string()),
                         pa.list_(pa.binary()), pa.list_(pa.list_(pa.string())), pa.list_(pa.string(), 1), pa.int64(),
                         pa.float32(), pa.bool_(), pa.date32(), pa.null(), pa.string_view(), pa.list_(pa.int8()),
                         pa.dictionary(pa.int32(), pa.string()), pa.struct({'a': pa.string()}),
                         pa.map_('string', 'int8')])
cells = st.lists(scalar | st.binary(max_size=3) | st.lists(word | st.binary(max_size=2), max_size=2),
                 min_size=3, max_size=3)


@fuzzed(8, images=st.sampled_from([pa.string()]*4 + [pa.large_string()]) | kinds, tags=kinds, split=kinds, cells=cells,
        words=cells, names=st.sampled_from([['image', 'tags', 'split']]*5 + [['image', 'tags', 'tags']]),
        damage=st.booleans(), data_=st.data(), **ways)
def test_parquet(images, tags, split, cells, words, names, damage, data_, skip_bad, allow):
    with workplace() as data:
        columns = [_column(images, ['a.jpg', 'b.jpg', 'c.jpg']), _column(tags, cells), _column(split, words)]
        file = io.BytesIO()
        try: pa.parquet.write_table(pa.Table.from_arrays(columns, names), file)
        except (pa.ArrowException, UnicodeEncodeError): return
        content = data_.draw(damaged(file.getvalue())) if damage else file.getvalue()
        (data/'tags.parquet').write_bytes(content)
        read(lambda: open_tags(data/'tags.parquet', skip_bad, allow), data, 'tags.parquet')


STUDIO = [dict(id=1, data=dict(image='/data/upload/1/ab-a.jpg'), annotations=[dict(was_cancelled=False, result=[
    dict(type='choices', value=dict(choices=['cat', 'dog']))])]), dict(image='b.jpg', choice='dog', id=2)]
FIFTYONE = dict(classes=['cat', 'dog'], labels=dict(a=0, b=[1, 'cat'], c=dict(label='dog')))
SAMPLES = dict(samples=[dict(filepath='a.jpg', ground_truth=dict(_cls='Classification', label='cat')),
                        dict(filepath='b.jpg', other=dict(
                            _cls='Classifications', classifications=[dict(label='dog')]))])
CVAT = b'''<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
<image id="0" name="a.jpg" subset="train" width="24" height="16"><tag label="cat" source="manual"></tag></image>
<image id="1" name="b.jpg"><tag label="dog"/><box label="x"/></image></annotations>'''


def known_tags(tree):
    "All texts and numbers in a document, of which every tag must be one, or a part between semicolons"
    found = set()
    for path in paths_of(tree):
        node = tree
        for step in path: node = node[step]
        if isinstance(node, (str, int, float)): found |= {part.strip() for part in str(node).split(';')}
        if isinstance(node, str): found.add(node.strip())
    return found


@fuzzed(10, tree=mutated(STUDIO) | mutated(FIFTYONE) | mutated(SAMPLES), damage=st.booleans(), data_=st.data(), **ways)
def test_exports(tree, damage, data_, skip_bad, allow):
    with workplace() as data:
        tree = rooted(tree, data)
        (data/'data').mkdir()
        for name in 'abc': (data/f'data/{name}.jpg').write_bytes(JPEG)
        (data/'ab-a.jpg').write_bytes(JPEG)
        content = json.dumps(tree).encode()
        if damage: content = data_.draw(damaged(content))
        (data/'export.json').write_bytes(content)
        dataset = read(lambda: open_tags(data/'export.json', skip_bad, allow), data, 'export.json')
        if dataset and not damage: assert set(dataset.classes) <= known_tags(tree), dataset.classes


@fuzzed(6, content=damaged(CVAT, 5), name=word, **ways)
def test_cvat(content, name, skip_bad, allow):
    with workplace() as data:
        given = rooted(name, data).encode().replace(b'"', b'').replace(b'<', b'').replace(b'&', b'')
        (data/'cvat.xml').write_bytes(content.replace(b'b.jpg', given))
        read(lambda: open_tags(data/'cvat.xml', skip_bad, allow), data, 'cvat.xml')


# archives

def tar_of(members, kind):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w', format=kind) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if data == b'link': info.type, info.linkname, info.size = tarfile.SYMTYPE, '../outside.jpg', 0
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


member = st.tuples(st.sampled_from(['a.jpg', 'b.png', 'a.txt', 'a.json', 'a.cls', 'a.v2.jpg', 'a.v2.json', '../x.jpg',
                                    'd/a.jpg', '/a.jpg', 'ü'*60 + '.jpg', '.jpg', 'a']) | word.filter(bool),
                   st.sampled_from([JPEG, PICTURES['png'], b'cat', b'cat;dog', b'["cat"]', b'{"tags": {"a": 1}}', b'',
                                    b'link', b'\xff\xfe', b'3', b'{"label": true}', b'['*9000, b'{"labels": [1.5]}']))


@fuzzed(9, members=st.lists(member, min_size=1, max_size=5), damage=st.booleans(), data_=st.data(),
        kind=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), **ways)
def test_shards(members, damage, data_, kind, skip_bad, allow):
    with workplace() as data:
        try: content = tar_of([(rooted(name, data).replace('\0', ''), each) for name, each in members], kind)
        except (ValueError, UnicodeError): return                        # USTAR cannot hold this name
        if damage: content = data_.draw(damaged(content))
        (data/'shard.tar').write_bytes(content)
        read(lambda: open_tags(data/'shard.tar', skip_bad, allow), data, 'shard.tar')
        images = read(lambda: find_images([data/'shard.tar'], data/'out'), data, 'shard.tar') or {}
        for image in images.values(): read(image.load, data, 'shard.tar')


@fuzzed(1, content=damaged(tar_of([('a.jpg', JPEG), ('a.txt', b'cat')], tarfile.GNU_FORMAT)), zipped=st.booleans(),
        ending=st.sampled_from(['zip', 'tar.gz', 'tgz', 'tar', 'npz']))
def test_other_archives(content, zipped, ending):
    with workplace() as data:
        (data/f'shard.{ending}').write_bytes(content)
        if zipped:
            with zipfile.ZipFile(data/f'shard.{ending}', 'w') as file: file.writestr('../x.jpg', content)
        read(lambda: open_tags(data/f'shard.{ending}', False, True), data, 'shard')


# images and masks

@fuzzed(14, name=st.sampled_from(sorted(PICTURES)), data_=st.data())
def test_pictures(name, data_):
    content = data_.draw(damaged(PICTURES[name]))
    with workplace() as data:
        path = data/f'x.{name}'
        path.write_bytes(content)
        whole = load_image('x', PICTURES[name])
        for reader in (load_image, as_image, lambda path: load_image('x.', path.read_bytes())):
            image = read(lambda: reader(path), data, 'x.')
            if not image: continue
            assert image.mode == 'RGB' and 0 < image.width*image.height < 2e8
            if name.endswith('png'): assert image.tobytes() == whole.tobytes(), 'a damaged picture was read as another'
        read(lambda: check_image(path), data, 'x.')
        mask = read(lambda: load_mask(path, 3), data, 'x.')
        if mask is not None: assert mask.ndim == 2 and ((mask <= 3) | (mask == 255)).all() and (mask >= 0).all()
        if mask is not None: read(lambda: load_mask(path, 3, (16, 24)), data, 'x.')
        path.rename(data/'r.png')
        regions = read(lambda: read_regions(data, 'r', (16, 24)), data, 'r.png')
        if regions is not None: assert regions.ndim == 2 and (regions != 0).all() and (regions >= -1).all()


arrays = st.tuples(
    st.sampled_from(['u1', 'i1', 'u2', 'i4', 'u8', 'f2', 'f4', 'f8', 'c8', '?', 'U1', 'O', 'M8[s]']),
    st.lists(st.integers(0, 5), max_size=4),
    st.sampled_from([0, 1, .5, -1, 255, 256, 70000, 1e30, float('nan'), float('inf')]))


@fuzzed(3, array=arrays, tensor=st.booleans())
def test_arrays_as_pictures(array, tensor):
    kind, shape, fill = array
    with np.errstate(all='ignore'):
        try: given = np.full(shape, fill).astype(kind)
        except (ValueError, TypeError, OverflowError): return
    try: given = torch.from_numpy(given) if tensor else given
    except TypeError: return
    with workplace() as data: image = read(lambda: as_image(given), data)
    assert image is None or image.mode == 'RGB' and image.width*image.height > 0


# COCO and VOC

COCO = dict(
    images=[dict(id=1, file_name='a.jpg', height=16, width=24), dict(id=2, file_name='b.jpg', height=16, width=24)],
    categories=[dict(id=1, name='person'), dict(id=90, name='toothbrush')],
    annotations=[dict(id=1, image_id=1, category_id=1, iscrowd=0, area=50, segmentation=[[1, 1, 9, 1, 9, 9, 1, 9]]),
                 dict(id=2, image_id=1, category_id=90, iscrowd=1, area=9, segmentation=dict(
                     size=[16, 24], counts=[100, 84, 200])),
                 dict(id=3, image_id=2, category_id=90, iscrowd=0, area=9, segmentation=dict(
                     size=[16, 24], counts='b1790000000000000^6'))])


@fuzzed(9, tree=mutated(COCO), damage=st.booleans(), data_=st.data(), crowds=st.sampled_from(['ignore', 'class']),
        **ways)
def test_coco(tree, damage, data_, crowds, skip_bad, allow):
    with workplace() as data:
        for folder in ('annotations', 'val2017'): (data/folder).mkdir()
        for name in 'ab': (data/f'val2017/{name}.jpg').write_bytes(JPEG)
        content = json.dumps(rooted(tree, data)).encode()
        if damage: content = data_.draw(damaged(content))
        (data/'annotations/instances_val2017.json').write_bytes(content)
        def use():
            dataset = COCODataset(data, 'val', masks=True, skip_bad=skip_bad, allow_untagged=allow, crowds=crowds,
                                  processes=1)
            check_dataset(dataset)
            return dataset
        for _ in range(2): read(use, data, 'val2017')                    # the second time from the cache


@fuzzed(1, lines=st.lists(word | st.sampled_from(
    ['1 0', '1 0 1', '000000000001 0', '1 2', 'x', '1 ٣', '1 -1', '1 99999', '', '1']), max_size=4))
def test_coco_tag_lists(lines):
    with workplace() as data:
        (data/'annotations').mkdir()
        (data/'annotations/instances_val2017.json').write_text(json.dumps(COCO))
        (data/'list.txt').write_text('\n'.join(lines), errors='replace')
        read(lambda: check_dataset(COCODataset(data, 'val', tags=data/'list.txt')), data)


VOC = b'''<annotation><filename>a.jpg</filename><object><name>cat</name><part><name>head</name></part></object>
<object><name> dog </name></object></annotation>'''
MASK, MAT = io.BytesIO(), io.BytesIO()
save_mask(np.random.default_rng(0).integers(0, 3, (16, 24)), MASK)
savemat(MAT, dict(GTcls=dict(Segmentation=np.ones((16, 24), np.uint8))))
ONEHOT = io.BytesIO()
np.save(ONEHOT, dict(a=np.array([1, 0]), b=np.array([1., 1])), allow_pickle=True)
VOC_FILES = {'Annotations/a.xml': VOC, 'classes.txt': b'cat\ndog\n', 'ImageSets/Segmentation/train.txt': b'a\nb\n',
             'ImageSets/Main/cat_train.txt': b'a 1\nb -1\n', 'SegmentationClass/a.png': MASK.getvalue(),
             'SBD/cls/b.mat': MAT.getvalue(), 'onehot.npy': ONEHOT.getvalue()}


@fuzzed(9, changed=st.sampled_from(sorted(VOC_FILES)), lines=st.none() | st.lists(word, max_size=4), data_=st.data(),
        tags=st.sampled_from(['xml', 'lists', 'onehot']), **ways)
def test_voc(changed, lines, data_, tags, skip_bad, allow):
    with workplace() as data:
        files = VOC_FILES | {'Annotations/b.xml': VOC, 'ImageSets/Main/dog_train.txt': b'a 1\nb 1\n',
                             'JPEGImages/a.jpg': JPEG, 'JPEGImages/b.jpg': JPEG, 'SBD/img/c.jpg': JPEG}
        files[changed] = data_.draw(damaged(files[changed]))
        if lines is not None and changed.endswith('txt'): files[changed] = '\n'.join(rooted(lines, data)).encode()
        for name, content in files.items():
            (data/name).parent.mkdir(parents=True, exist_ok=True)
            (data/name).write_bytes(content)
        source = data/'onehot.npy' if tags == 'onehot' else tags
        def use():
            dataset = VOCDataset(data, 'train', source, masks=True, skip_bad=skip_bad, allow_untagged=allow,
                                 sbd=data/'SBD')
            check_dataset(dataset)
            return [item['mask'] for item in dataset]
        masks = read(use, data)
        if masks and changed.endswith('a.png') and len(masks) == 2:
            assert torch.equal(masks[0], load_mask_of(MASK)), 'a damaged mask was read as another'
        if tags == 'onehot': read(lambda: read_onehot(source), data, 'onehot.npy')


def load_mask_of(file): return torch.from_numpy(np.array(Image.open(io.BytesIO(file.getvalue()))).astype(np.int64))


# settings

SETTINGS = asdict(PRESETS['demo']) | dict(preset='demo', prompts=dict(cat='tabby'))
toml_value = st.recursive(
    st.sampled_from(['1', '-1', '0', '1.5', 'nan', 'inf', '1979-05-27', '07:32:00', 'true', '""', "'x'", '"""\nx"""',
                     '"\\u0000"', '"\\ud800"', '9'*30, '9'*5000, '0x10', '1e400', '1_000', '"a\\nb"',
                     '[1, "a"]', '{a = 1}', '[[]]', '{}'])
    | st.integers(-2, 2**64).map(str) | st.floats(width=16).map(str), lambda inner: st.lists(inner, max_size=3).map(
        lambda items: f'[{", ".join(items)}]') | st.lists(inner, max_size=2).map(
        lambda items: f'{{{", ".join(f"k{i} = {item}" for i, item in enumerate(items))}}}'), max_leaves=4)
toml_line = st.tuples(st.sampled_from([*SETTINGS]*3 + ['bacth_size', 'a.b', '"x y"', '[t]\nx', '[[prompts]]\nx']),
                      toml_value).map(' = '.join) | st.sampled_from([
                          '[', '[[x]]', 'x', '# ä', '\ufeff', 'a = "', '\r', '\0', '.'*2000])


def settings_of(path):
    config = read_config(path)
    write_config(config, path.parent.parent/'cache/again.toml')
    assert read_config(path.parent.parent/'cache/again.toml') == config
    return config


@fuzzed(8, lines=st.lists(toml_line, max_size=4), damage=st.booleans(), data_=st.data())
def test_settings(lines, damage, data_):
    with workplace() as data:
        content = '\n'.join(lines).encode(errors='surrogatepass')
        if damage: content = data_.draw(damaged(content))
        (data/'run.toml').write_bytes(content)
        read(lambda: settings_of(data/'run.toml'), data, 'run.toml')


GRID = '''title = "Table 1"\nminutes = 1.5\n[health]\nsource = "x"\n100 = 20.5\n[[table]]\nid = "t"\ntitle = "T"
measures = ["cam"]\nsettings = {preset = "demo"}\n[[table.row]]\nname = "one"\n[[table.row]]\nname = "two"
settings = {lr = 1e-4}
against = "one"\n'''


@fuzzed(3, data_=st.data(), line=st.none() | st.integers(0, 16), new=toml_value)
def test_grids(data_, line, new):
    with workplace() as data:
        lines = GRID.splitlines()
        if line is not None and line < len(lines) and '=' in lines[line]:
            lines[line] = f'{lines[line].split("=")[0]}= {new}'
            content = '\n'.join(lines).encode()
        else: content = data_.draw(damaged(GRID.encode()))
        (data/'grid.toml').write_bytes(content)
        read(lambda: read_grid(data/'grid.toml'), data, 'grid.toml')


# text files, weights and checkpoints

TEXT = dict(names=np.array(['cat', 'dog']), prompts=np.array(['a cat', 'a dog']), fg=np.eye(2, 8), bg=np.ones((1, 8)),
            source=np.array('me'))


def saved(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@fuzzed(5, name=st.sampled_from(sorted(TEXT)), array=arrays, words=st.none() | st.lists(word, max_size=2),
        damage=st.booleans(), data_=st.data())
def test_text_files(name, array, words, damage, data_):
    kind, shape, fill = array
    with np.errstate(all='ignore'):
        try: changed = np.full(shape, fill).astype(kind) if words is None else np.array(words)
        except (ValueError, TypeError, OverflowError): return
    content = data_.draw(damaged(saved(**TEXT))) if damage else saved(**TEXT | {name: changed})
    with workplace() as data:
        (data/'text.npz').write_bytes(content)
        text = read(lambda: TextEmbeddings.load(data/'text.npz'), data, 'text.npz')
        if text is None: return
        assert torch.isfinite(text.fg).all() and len(text.fg) == len(text.names) == len(text.prompts)
        assert damage is False or (text.names == ('cat', 'dog') and torch.equal(text.fg, torch.eye(2, 8)))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small checkpoint with moments"
    config = replace(PRESETS['demo'], data='x', seg_start=1, seg_width=8,
                     encoder_options=dict(depth=1, patch_size=16, img_size=32))
    text = build_text(config, ('cat', 'dog'))
    model = build_model(config, text)
    return Checkpoint.save(tmp_path_factory.mktemp('run')/'iter_000002', model, config, text, 2,
                           torch.optim.AdamW(model.parameters())), model.state_dict()


def copied(run, data, changes, seal):
    "A copy of a checkpoint, with other bytes in some files; `seal` makes fingerprints match them again"
    folder = data/'iter_000002'
    folder.mkdir()
    for path in run.iterdir(): (folder/path.name).write_bytes(changes.get(path.name, path.read_bytes()))
    if seal:
        about = json.loads((folder/'config.json').read_text())
        about.pop('files', None)
        about['fingerprint'] = _seal(about)
        (folder/'config.json').write_text(json.dumps(about))
    return folder


def load_all(folder):
    found, _ = Checkpoint.load(folder)
    has_segmentation(folder)
    assert Checkpoint.newest(folder.parent, lambda line: None) == folder
    return found.state_dict()


@fuzzed(4, name=st.sampled_from(['config.json', 'model.safetensors']), seed=st.integers(0, 2**20),
        bit=st.integers(0, 7))
def test_checkpoints_with_a_flipped_bit(run, name, seed, bit):
    with workplace() as data:
        content = bytearray((run[0]/name).read_bytes())
        content[seed % len(content)] ^= 1 << bit
        folder = copied(run[0], data, {name: bytes(content)}, False)
        state = read(lambda: load_all(folder), data, 'iter_000002')
        assert state is None or all(torch.equal(state[name], value) for name, value in run[1].items())


ABOUT = ['config', 'iteration', 'names', 'prompts', 'text_source', 'state', 'encoder', 'encoder_options', 'width',
         'method']


@fuzzed(5, data_=st.data(), name=st.sampled_from(ABOUT))
def test_checkpoints_that_say_something_else(run, data_, name):
    about = json.loads((run[0]/'config.json').read_text())
    about.pop('files')
    if name in about: about = about | {name: data_.draw(mutated(about[name]) | value)}
    elif name == 'encoder_options':
        about['config'][name] |= data_.draw(st.dictionaries(st.sampled_from(OPTIONS), plain, max_size=2))
    elif name == 'encoder': about['config'][name] = data_.draw(st.sampled_from(NAMES) | word)
    else: about['config'] |= data_.draw(st.dictionaries(st.sampled_from(sorted(about['config'])), value, max_size=2))
    with workplace() as data:
        changes = {'config.json': json.dumps(about | dict(fingerprint=_seal(about))).encode()}
        folder = copied(run[0], data, changes, False)
        read(lambda: load_all(folder), data, None, 60)                   # an encoder's error names its setting


OPTIONS = ['depth', 'patch_size', 'img_size', 'embed_dim', 'num_heads', 'mlp_ratio', 'frozen', 'class_token',
           'global_pool', 'checkpoint_path', 'pretrained_cfg', 'qkv_bias', 'inter', 'dim', 'heads']
NAMES = ['vit_tiny_patch16_224', 'resnet18', 'hybrid:resnet18', 'hybrid:x', 'hf-hub:a/b', 'local-dir:ROOT', '../x',
         'test_vit2', 'deit_tiny_patch16_224', 'eva02_tiny_patch14_224', 'test_efficientnet',
         'hybrid:vit_tiny_patch16_224', 'hybrid:', '.']


def spoilt(content, draw):
    "Bytes of a safetensors file whose header says something else"
    size = int.from_bytes(content[:8], 'little')
    header, rest = json.loads(content[8:8 + size]), content[8 + size:]
    name = draw(st.sampled_from(sorted(header)))
    if draw(st.booleans()): header[name]['dtype'] = draw(st.sampled_from(
        ['F16', 'BF16', 'I32', 'U32', 'F64', 'BOOL', 'U8', 'F8_E4M3', 'F8_E5M2', 'C64', 'X', 'I64']))
    else: header[name] = draw(mutated(header[name], 1))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, 'little') + text + rest


@fuzzed(5, data_=st.data(), header=st.booleans())
def test_checkpoints_with_other_weights(run, data_, header):
    content = (run[0]/'model.safetensors').read_bytes()
    content = spoilt(content, data_.draw) if header else data_.draw(damaged(content))
    with workplace() as data:
        folder = copied(run[0], data, {'model.safetensors': content}, True)
        state = read(lambda: load_all(folder), data, 'iter_000002')
        assert state is None or all(torch.isfinite(value).all() for value in state.values())


def torch_file():
    file = io.BytesIO()
    torch.save({'a': torch.ones(3), 'b': torch.zeros(2, 2)}, file)
    return file.getvalue()


@fuzzed(2, content=damaged(torch_file()), ending=st.sampled_from(['pth', 'bin', 'safetensors']))
def test_weight_files(content, ending):
    with workplace() as data:
        (data/f'w.{ending}').write_bytes(content)
        read(lambda: read_weights(data/f'w.{ending}'), data, 'w.')


# the cache

@fuzzed(6, seed=st.integers(0, 2**20), bit=st.integers(0, 7), cut=st.integers(0, 4),
        kind=st.sampled_from(['tags', 'coco']))
def test_a_damaged_cache_changes_nothing(seed, bit, cut, kind):
    with workplace() as data:
        (data/'tags.csv').write_text('image,tags\na.jpg,cat\nb.jpg,dog\n')
        for folder in ('coco/annotations', 'coco/val2017'): (data/folder).mkdir(parents=True)
        for name in 'ab': (data/f'coco/val2017/{name}.jpg').write_bytes(JPEG)
        (data/'coco/annotations/instances_val2017.json').write_text(json.dumps(COCO))
        def use():
            if kind == 'coco': dataset = open_dataset(data/'coco', 'val', masks=True)
            else: dataset = TaggedImageDataset(data/'tags.csv')
            if kind == 'tags': dataset.keep_decoded(data.parent/'cache/decoded')
            items = [dataset[i] for i in range(2)]
            return [np.asarray(item[key]) for item in items for key in sorted({'image', 'tags', 'mask'} & set(item))]
        before, files = use(), sorted(path for path in (data.parent/'cache').rglob('*') if path.is_file())
        path = random.Random(seed).choice(files)
        content = bytearray(path.read_bytes())
        if not content: return
        content[seed % len(content)] ^= 1 << bit
        path.write_bytes(content if cut else content[:seed % len(content)])
        after = read(use, data)
        assert after and all(np.array_equal(one, two) for one, two in zip(before, after)), path


@fuzzed(1, seed=st.integers(0, 2**20), bit=st.integers(0, 7), cut=st.integers(0, 4))
def test_damaged_vectors_of_words_are_made_again(seed, bit, cut):
    with workplace() as data, pytest.MonkeyPatch.context() as patch:
        vectors = torch.nn.functional.normalize(torch.arange(24.).view(3, 8) + 1, dim=-1)
        patch.setattr('dalnet.text._clip_vectors', lambda prompts, model, weights: vectors[:len(prompts)])
        def use(): return encode_text(['cat', 'dog'], cache=data.parent/'cache')
        before, files = use(), sorted((data.parent/'cache').rglob('*'))
        content = bytearray(files[0].read_bytes())
        content[seed % len(content)] ^= 1 << bit
        files[0].write_bytes(content if cut else content[:seed % len(content)])
        order = {str(each): i for i, each in enumerate(files)}
        patch.setattr('dalnet.text._clip_vectors', lambda prompts, model, weights: torch.stack(
            [before_vector(before, prompt) for prompt in prompts]))
        after = read(use, data)
        assert order and torch.equal(before.fg, after.fg) and torch.equal(before.bg, after.bg)


def before_vector(text, prompt):
    return text.bg[0] if 'background' in prompt else text.fg[list(text.prompts).index(prompt)]
