"Promises about the package: complete metadata, one version, builds with everything in them, Python 3.10 grammar"
import ast
import configparser
import json
import re
import subprocess
import sys
import tarfile
import tokenize
import zipfile
from email import message_from_bytes
from pathlib import Path
import pytest
if sys.version_info >= (3, 11): import tomllib
else: import tomli as tomllib

ROOT = Path(__file__).parents[1]
CONFIG = configparser.ConfigParser(delimiters=['='])
CONFIG.read(ROOT/'settings.ini', encoding='utf-8')
SETTINGS = CONFIG['DEFAULT']


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "sdist and wheel, built with what is installed here from a copy of the tracked files"
    pytest.importorskip('build', reason='pip install build')
    folder = tmp_path_factory.mktemp('package')
    tracked = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode: pytest.skip('not a git checkout')
    for name in tracked.stdout.split('\0'):
        if not name or name.startswith(('nbs/', 'tests/')) or not (ROOT/name).is_file(): continue
        (folder/'src'/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/'src'/name).write_bytes((ROOT/name).read_bytes())
    words = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder/'dist', folder/'src']
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder/'dist'


@pytest.fixture(scope='module')
def metadata(built):
    "The metadata in the wheel"
    wheel, = built.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
        return message_from_bytes(archive.read(name))


def test_metadata_is_complete(metadata):
    for name in ('Name', 'Version', 'Summary', 'Author', 'Author-email', 'Keywords', 'Requires-Python'):
        assert metadata[name], name
    assert 'Apache-2.0' in (metadata['License-Expression'] or metadata['License'])
    assert metadata['Requires-Python'] == f'>={SETTINGS["min_python"]}'
    links = dict(value.split(', ', 1) for value in metadata.get_all('Project-URL'))
    assert set(links) >= {'Documentation', 'Source', 'Changelog', 'Issues', 'Paper'}
    assert all(link.startswith('https://') and '%' not in link for link in links.values())
    classifiers = metadata.get_all('Classifier')
    for minor in range(10, 15): assert f'Programming Language :: Python :: 3.{minor}' in classifiers
    assert len(metadata['Summary']) < 512 and '\n' not in metadata['Summary']


def test_the_long_description_leads_somewhere_away_from_the_repository(metadata):
    assert metadata['Description-Content-Type'] == 'text/markdown'
    text = metadata.get_payload()
    relative = [link for link in re.findall(r'\]\(([^)\s]+)', text) if not re.match('https?:|#', link)]
    assert len(text) > 2000 and not relative, relative[:3]
    for path in re.findall(r'/(?:blob/)?main/([^)\s#]+)', text): assert (ROOT/path).exists(), path


def test_extras_are_named_and_have_floors(metadata):
    extras = set(metadata.get_all('Provides-Extra'))
    assert extras == {'coco', 'crf', 'export', 'hub', 'app', 'dev'}
    assert extras == {name.removesuffix('_requirements') for name in SETTINGS if name.endswith('_requirements')}
    for name in extras - {'dev'}:
        for requirement in SETTINGS[f'{name}_requirements'].split(): assert re.search('[=>]=', requirement), requirement


def test_wheel_and_sdist_hold_what_they_need(built):
    wheel, = built.glob('*.whl')
    sdist, = built.glob('*.tar.gz')
    inside = set(zipfile.ZipFile(wheel).namelist())
    modules = {f'dalnet/{path.name}' for path in (ROOT/'dalnet').glob('*.py')}
    assert inside >= modules | {'dalnet/py.typed'}
    assert any(name.startswith('dalnet/grids/') for name in inside)
    assert any(name.endswith('LICENSE') for name in inside)
    assert {name.split('/')[0].split('-')[0] for name in inside} == {'dalnet'}  # no tests, no notebooks
    with tarfile.open(sdist) as archive: names = {name.partition('/')[2] for name in archive.getnames()}
    assert names >= modules | {'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'}


def test_twine_accepts_both(built):
    pytest.importorskip('twine', reason='pip install twine')
    words = [sys.executable, '-m', 'twine', 'check', '--strict', *built.iterdir()]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_one_version():
    version = SETTINGS['version']
    written = re.search(r'__version__ = "(.*)"', (ROOT/'dalnet/__init__.py').read_text())[1]
    cited = re.search(r'^version: (.*)$', (ROOT/'CITATION.cff').read_text(), re.M)[1]
    assert written == cited == version
    assert f'## {version}' in (ROOT/'CHANGELOG.md').read_text()
    assert "version=cfg['version']" in (ROOT/'setup.py').read_text()
    assert 'version' not in tomllib.loads((ROOT/'pyproject.toml').read_text()).get('project', {})


def test_all_code_is_python_3_10():
    paths = [path for folder in ('dalnet', 'tests', 'examples') for path in (ROOT/folder).glob('*.py')]
    paths.append(ROOT/'setup.py')
    for path in paths:
        with tokenize.open(path) as file: ast.parse(file.read(), path.name, feature_version=(3, 10))
    for path in (ROOT/'nbs').rglob('*.ipynb'):
        if any(part.startswith(('.', '_')) for part in path.relative_to(ROOT).parts): continue
        for cell in json.loads(path.read_text())['cells']:
            source = ''.join(cell['source'])
            if cell['cell_type'] == 'code' and not re.search(r'^\s*[!%]', source, re.M):
                ast.parse(source, path.name, feature_version=(3, 10))
    assert tomllib.loads((ROOT/'pyproject.toml').read_text())['tool']['ruff']['target-version'] == 'py310'


def test_the_release_needs_the_check_and_no_password():
    yaml = pytest.importorskip('yaml', reason='reads the workflow')
    flow = yaml.safe_load((ROOT/'.github/workflows/release.yml').read_text())
    jobs = flow['jobs']
    assert any('.ci/run' in str(step.get('run')) for step in jobs['check']['steps'])
    assert jobs['build']['needs'] == 'check' and jobs['pypi']['needs'] == 'build'
    assert jobs['pypi']['permissions'] == {'id-token': 'write'}           # trusted publishing
    assert 'password' not in str(flow) and 'secrets.' not in str(flow)
    assert any('gh release create' in str(step.get('run')) for step in jobs['github']['steps'])
    assert any('settings.ini' in str(step.get('run')) for step in jobs['check']['steps'])
