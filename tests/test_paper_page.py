"The page `From the paper to the code`: its links lead somewhere, and what it says of code and settings is true"
import ast
import importlib
import json
import re
from functools import cache
from pathlib import Path
import pytest
from dalnet.config import PRESETS
from dalnet.settings import TrainConfig

ROOT = Path(__file__).parents[1]
PAGE = ROOT/'nbs/tutorials/paper.ipynb'
STATES = ('*kept*', '*setting*', '*cannot be run here*', '*not yet*')
NEW = ('text_projection negatives map_source pseudo_source pseudo_switch ptc_start augment global_views local_crops '
       'local_outside train_positions decay_all fuse cam_threshold tf32').split()


@cache
def prose(notebook):
    "The Markdown of a notebook, without its title"
    cells = json.loads(notebook.read_text())['cells']
    return '\n\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown')


def slug(heading):
    "The anchor that Quarto makes of a heading"
    words = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading).replace('`', '').lower()
    kept = re.sub(r'[^\w\s.-]', '', words)
    return re.sub(r'^[\W\d_]+', '', re.sub(r'\s+', '-', kept.strip())) or 'section'


def anchors(notebook):
    "All anchors of a page, except that of its title"
    fenced = re.sub(r'```.*?```', '', prose(notebook), flags=re.S)
    found, seen = [], {}
    for heading in re.findall(r'^##+ +(.+?) *$', fenced, re.M):
        name = slug(heading)
        seen[name] = seen.get(name, -1) + 1
        found.append(f'{name}-{seen[name]}' if seen[name] else name)
    return found


def rows():
    "Rows of the tables with a column of states: [paper, chapter, code, setting, state]"
    lines = [line for line in prose(PAGE).splitlines() if line.startswith('| ')]
    cells = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in lines]
    return [row for row in cells if len(row) == 5 and row[0] != 'the paper']


def snippets(text): return re.findall(r'`([^`]+)`', text)


PUBLIC = {}
for module in sorted((ROOT/'dalnet').glob('[a-z]*.py')):
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
            PUBLIC |= dict.fromkeys(ast.literal_eval(node.value), f'dalnet.{module.stem}')
SOURCE = {f'dalnet.{module.stem}': module.read_text() for module in (ROOT/'dalnet').glob('[a-z]*.py')}
OPTIONS = ''.join(SOURCE[f'dalnet.{module}'] for module in ('cli', 'command', 'options', 'predict', 'tables'))
SCRIPTS = re.findall(r'\b(dalnet_\w+)=', (ROOT/'settings.ini').read_text())
SETTING = re.compile(r'(?:(\w+): )?([a-z_0-9]+)=(\S.*)')


def test_slugs():
    assert [slug(heading) for heading in ("DINO's rectangles", 'Eq. 1', '`dense_crf`', 'A crop, and which part')] == [
        'dinos-rectangles', 'eq.-1', 'dense_crf', 'a-crop-and-which-part']


def test_every_link_leads_to_a_heading():
    links = re.findall(r'\]\(([^)]+)\)', prose(PAGE))
    local = [link for link in links if not link.startswith('http')]
    assert len(local) > 50
    for link in local:
        path, _, anchor = link.partition('#')
        target = (PAGE.parent/path).resolve() if path else PAGE
        assert target.is_file() and target.suffix == '.ipynb' and target.is_relative_to(ROOT/'nbs'), link
        assert not anchor or anchor in anchors(target), link


def test_every_equation_table_and_figure_is_there():
    first = [row[0] for row in rows()]
    for name, numbers in {'Eq.': range(1, 9), 'Table': range(1, 5), 'Figure': range(2, 7)}.items():
        for number in numbers:
            assert any(re.match(rf'{name} {number}\b', what) for what in first), f'{name} {number}'


def test_every_row_has_a_state_and_names_code():
    assert len(rows()) > 50
    for row in rows():
        assert any(state in row[4] for state in STATES), row
        assert row[1].startswith('[') and snippets(row[2]), row
        names = [name for name in snippets(row[2]) if name.split('.')[0] in PUBLIC or name.split()[0] in SCRIPTS]
        assert names, row


def check_command(words):
    "A console script, and options that it or the settings have"
    assert words.startswith('--') or words.split()[0] in SCRIPTS, words
    for option in re.findall(r'--([a-z-]+)', words):
        known = option.replace('-', '_') in TrainConfig.__dataclass_fields__
        assert known or f"'--{option}'" in OPTIONS, words


def check_code(words):
    "A public name, a setting, a preset, a file, a command, or a line of the package"
    name, _, member = words.partition('.')
    if name in PUBLIC:
        home = getattr(importlib.import_module(PUBLIC[name]), name)
        assert not member or hasattr(home, member), words
    elif words.startswith(('--', 'dalnet_')): check_command(words)
    elif re.fullmatch(r'\w+', words): assert words in PRESETS or words in TrainConfig.__dataclass_fields__, words
    elif words.startswith('tests/'): assert (ROOT/words).exists(), words
    else: assert any(words in source for source in SOURCE.values()), words


def test_the_code_exists():
    for words in snippets(prose(PAGE)):
        if not SETTING.fullmatch(words): check_code(words)


@pytest.mark.parametrize('row', [row for row in rows() if ': `' in row[2]], ids=lambda row: row[0][:30])
def test_a_quoted_line_is_in_the_module_of_its_function(row):
    home = None
    for words in snippets(row[2]):
        name = words.split('.')[0]
        if name in PUBLIC: home = SOURCE[PUBLIC[name]]
        elif '(' in words or ' ' in words and not words.startswith('dalnet_'): assert words in home, words


def test_the_settings_have_these_defaults():
    found = [SETTING.fullmatch(words) for words in snippets(prose(PAGE))]
    found = [match.groups() for match in found if match]
    for preset, name, value in found:
        config = PRESETS[preset] if preset else TrainConfig()
        assert getattr(config, name) == ast.literal_eval(value), (preset, name, value)
    assert set(NEW) <= {name for _, name, _ in found}


def test_the_settings_column_holds_settings_only():
    for row in rows():
        assert all(SETTING.fullmatch(words) for words in snippets(row[3])), row[3]
