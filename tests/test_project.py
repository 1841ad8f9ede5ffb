"Promises about the project itself: the direction of imports, and that the site can be built with no broken link"
import ast, configparser, shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ORDER = 'images shapes transforms dataset index tagged voc coco data text encoder cam masks gia lea refine lattice segment model config processes checkpoint watch training inference evaluation figures cli'.split()


def test_modules_import_only_from_rows_above():
    assert sorted(ORDER) == sorted(o.stem for o in (ROOT/'dalnet').glob('*.py') if not o.stem.startswith('_'))
    every = set()
    for i, name in enumerate(ORDER):
        tree = ast.parse((ROOT/f'dalnet/{name}.py').read_text())
        used = {o.module.split('.')[0] for o in ast.walk(tree) if isinstance(o, ast.ImportFrom) and o.level == 1}
        every |= used
        assert used <= set(ORDER[:i]), (name, used - set(ORDER[:i]))
    assert {'data', 'encoder', 'model', 'training'} <= every  # the test sees imports at all


def test_console_scripts_exist():
    config = configparser.ConfigParser(delimiters=['=']); config.read(ROOT/'settings.ini')
    import dalnet.cli
    for script in config['DEFAULT']['console_scripts'].split():
        name, target = script.split('=')
        assert callable(getattr(dalnet.cli, target.split(':')[1])) and (Path(sys.executable).parent/name).exists()


def test_site_builds_without_broken_links(tmp_path):
    copy = shutil.copytree(ROOT, tmp_path/'project', symlinks=True, ignore=shutil.ignore_patterns('.git', 'runs', '_proc', '_docs', '*.egg-info', '.venv'))
    prepare = subprocess.run([sys.executable, '-c', 'from nbdev.serve import proc_nbs; print(proc_nbs())'], cwd=copy, capture_output=True, text=True)
    assert prepare.returncode == 0, prepare.stderr
    folder = Path(prepare.stdout.strip().splitlines()[-1])
    render = subprocess.run([str(Path(sys.executable).parent/'smalldocs'), 'render', '.'], cwd=folder, capture_output=True, text=True)
    assert render.returncode == 0, render.stdout + render.stderr
    check = subprocess.run([str(Path(sys.executable).parent/'smalldocs'), 'check', '.'], cwd=folder, capture_output=True, text=True)
    known = ('is not read by smalldocs', 'is ignored', 'is not built', 'thing(s) to look at')  # keys meant for Quarto
    wrong = [o for o in (check.stdout + check.stderr).splitlines() if o.strip() and not any(k in o for k in known)]
    assert not wrong, wrong
    pages = {o.stem for o in folder.rglob('*.html')}
    for notebook in ('index', '00_data', '00f_tagged', '03_cam', '08_lattice', '11_training', '12_inference', 'voc_mini'): assert notebook in pages, (notebook, pages)
    gia = next(o for o in folder.rglob('05_gia.html')).read_text()
    assert 'At the end of this chapter you hold' in gia and 'mathcal{L}_{im}' in gia  # the opening and its equation survive the building
