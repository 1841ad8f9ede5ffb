"Promises about the project itself: the book's one list, and what a module may load"
import ast
import configparser
import importlib
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
import pytest
if sys.version_info >= (3, 11): import tomllib
else: import tomli as tomllib

ROOT = Path(__file__).parents[1]
BOOK = tomllib.loads((ROOT/'chapters.toml').read_text())['part']
CHAPTERS = [(part['folder'], chapter[0]) for part in BOOK for chapter in part['chapters']]


def python(code, **options):
    "Run code in a process of its own"
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, **options)


def exported(folder, chapter):
    "The module that a chapter exports, or None"
    found = re.search(r'#\| default_exp (\w+)', (ROOT/f'nbs/{folder}/{chapter}.ipynb').read_text())
    return found and found[1]


MODULES = {module: folder for folder, chapter in CHAPTERS if (module := exported(folder, chapter))}


def imports(module):
    "The modules of dalnet that a module imports anywhere in it"
    tree = ast.parse((ROOT/f'dalnet/{module}.py').read_text())
    return {node.module for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module}


def test_the_book_lists_every_notebook_and_every_module():
    notebooks = {path.relative_to(ROOT/'nbs').with_suffix('').as_posix() for path in (ROOT/'nbs').rglob('*.ipynb')
                 if not any(part.startswith(('.', '_')) for part in path.parts)}
    assert notebooks == {'index', *(f'{folder}/{chapter}' for folder, chapter in CHAPTERS)}
    assert sorted(MODULES) == sorted(path.stem for path in (ROOT/'dalnet').glob('*.py') if path.stem != '_modidx')


def test_sidebar_table_and_readme_follow_the_book():
    done = subprocess.run([sys.executable, ROOT/'.ci/book.py', '--check'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_modules_import_only_what_their_part_may():
    graph = {module: imports(module) for module in MODULES}
    for part in BOOK:
        allowed = set(part.get('imports', ()))
        for module in (module for module, folder in MODULES.items() if folder == part['folder']):
            wrong = {name for name in graph[module] if name not in allowed and MODULES[name] not in allowed}
            assert not wrong, f'{module} imports {wrong}'
    assert list(TopologicalSorter(graph).static_order())                 # raises where imports go in a circle
    assert graph['core'] == set() and graph['config'] == {'core', 'settings', 'values'}
    assert 'cam' in graph['model']


HEAVY = {'accelerate', 'matplotlib', 'open_clip', 'pandas', 'pyarrow', 'pycocotools', 'scipy', 'timm', 'torch',
         'torchvision'}
TABLES, MODEL = {'pyarrow', 'torch'}, {'timm', 'torch', 'torchvision'}
IMAGES = {'scipy', 'torch', 'torchvision'}
DATA = TABLES | IMAGES
RUN = DATA | MODEL | {'accelerate'}
LOADS = {  # what `import dalnet.X` may load of these
    **dict.fromkeys('__init__ bench_cli card claim cli command config core fetch hub mat options pages predict '
                    'settings values'
                    .split(), set()),
    **dict.fromkeys('bootstrap cam contrast crf errors gia images lattice lea masks measure'.split(), {'torch'}),
    **dict.fromkeys('metrics pseudo refine regions report segment shapes text'.split(), {'torch'}),
    **dict.fromkeys('archives exports image_files index readers results'.split(), TABLES), 'label_formats': {'scipy'},
    'known_tags': DATA, 'tool_files': TABLES | {'scipy'},
    **dict.fromkeys('coco coco_annotations dataset transforms'.split(), IMAGES),
    **dict.fromkeys('bench_data data tagged voc voc_tags'.split(), DATA),
    **dict.fromkeys('encoder export frozen maps model published'.split(), MODEL),
    **dict.fromkeys('build checkpoint'.split(), DATA | MODEL),
    'processes': {'accelerate', 'torch'}, 'teacher': {'accelerate', 'torch'}, 'check': DATA | {'accelerate'},
    **dict.fromkeys('bench bench_growth bench_steps bench_use clip_es evaluation inference label_files publish '
                    'quantize step threshold'.split(), RUN),
    'run_report': RUN, 'watch': {'accelerate', 'matplotlib', 'torch'}, 'batches': IMAGES | {'accelerate', 'matplotlib'},
    **dict.fromkeys('app cost demo figures grid runs tables training'.split(), RUN | {'matplotlib'})}


def test_every_module_is_in_the_list():
    assert set(LOADS) == set(MODULES)


@pytest.mark.parametrize('module', LOADS)
def test_a_module_loads_no_more_than_it_needs(module):
    name = 'dalnet' if module == '__init__' else f'dalnet.{module}'
    done = python(f'import sys, {name}; print(*sys.modules)')
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) & HEAVY <= LOADS[module]


def test_the_model_adds_little_to_torch_and_timm():
    code = 'import time, torch, timm; t = time.perf_counter(); import dalnet.model; print(time.perf_counter() - t)'
    seconds = [float(python(code).stdout) for _ in range(3)]
    assert min(seconds) < 1, seconds


def test_first_names_are_found_where_they_live():
    import dalnet
    for name, module in dalnet.FIRST_NAMES.items():
        assert getattr(dalnet, name) is getattr(importlib.import_module(f'dalnet.{module}'), name)
    readme = (ROOT/'README.md').read_text()
    used = {name.strip() for line in re.findall(r'^from dalnet import (.*)', readme, re.M) for name in line.split(',')}
    assert used and used <= set(dalnet.FIRST_NAMES)


def test_public_names_have_one_address():
    homes = {}
    for module in MODULES:
        tree = ast.parse((ROOT/f'dalnet/{module}.py').read_text())
        names = next(ast.literal_eval(node.value) for node in tree.body
                     if isinstance(node, ast.Assign) and node.targets[0].id == '__all__')
        for name in names: homes.setdefault(name, []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def cells(notebook):
    "The sources of a notebook's code cells, and their outputs"
    code = (cell for cell in json.loads(notebook.read_text())['cells'] if cell['cell_type'] == 'code')
    return [(''.join(cell['source']), cell['outputs']) for cell in code]


@pytest.mark.parametrize('folder, chapter', [('.', 'index'), *CHAPTERS])
def test_cells_are_short_and_seen_and_asserted(folder, chapter):
    found = cells(ROOT/f'nbs/{folder}/{chapter}.ipynb')
    long = [line for source, _ in found for line in source.splitlines()
            if len(line) > 120 and not line.startswith('#| fig-alt:')]
    assert not long, long[:3]
    exports = [source for source, _ in found if re.match(r'#\| exports?\b', source)]
    assert max((len(source.splitlines()) for source in exports), default=0) <= 45
    lines = [line for source in exports for line in source.splitlines()]
    raises = [line for line in lines if re.search(r'(if|except) .*: raise InputError', line)]
    assert not raises, raises[0]                                          # the condition, and the error below it
    if exports: assert any('assert' in source or 'test_' in source for source, _ in found if source not in exports)
    assert not any(output['output_type'] == 'error' for _, outputs in found for output in outputs)


@pytest.mark.parametrize('folder, chapter', CHAPTERS)
def test_figures_have_alt_text(folder, chapter):
    without = [source.splitlines()[0] for source, outputs in cells(ROOT/f'nbs/{folder}/{chapter}.ipynb')
               if any('image/png' in output.get('data', {}) for output in outputs) and 'fig-alt:' not in source]
    assert not without, without


def test_modules_fit_on_a_few_pages():
    for module in MODULES:
        lines = (ROOT/f'dalnet/{module}.py').read_text().splitlines()
        assert len(lines) <= 315, f'{module}: {len(lines)} lines'         # 300, and what the export adds
        long = [line for line in lines if len(line) > 120 and not line.startswith('__all__')]
        assert not long, f'{module}: {long[0]}'


def test_console_scripts_exist():
    config = configparser.ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini')
    for script in config['DEFAULT']['console_scripts'].split():
        name, target = script.split('=')
        module, function = target.split(':')
        assert callable(getattr(importlib.import_module(module), function))
        assert (Path(sys.executable).parent/name).exists()
