"""Write what follows from chapters.toml: the sidebar in _quarto.yml, the table of chapters in nbs/index.ipynb, and
README.md, which is nbs/index.ipynb as Markdown. With --check, only compare and name the file that differs."""
import json
import re
import sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
try: import tomllib
except ModuleNotFoundError: import tomli as tomllib

root = Path(__file__).resolve().parents[1]
book = tomllib.loads((root/'chapters.toml').read_text(encoding='utf-8'))['part']
index, quarto, readme = root/'nbs/index.ipynb', root/'_quarto.yml', root/'README.md'
TABLE = 'f34463b5'  # id of the cell with the table of chapters


def about(part, notebook):
    "A chapter's title, and the module that it exports as code, or nothing"
    cells = json.loads((root/f'nbs/{part["folder"]}/{notebook}.ipynb').read_text(encoding='utf-8'))['cells']
    title = ''.join(cells[0]['source']).splitlines()[0].removeprefix('# ')
    found = re.search(r'#\| default_exp (\w+)', '\n'.join(''.join(cell['source']) for cell in cells))
    return title, f'`dalnet.{found[1]}`'.replace('.__init__', '') if found else ''


def sidebar():
    "The contents of the sidebar as YAML"
    lines = ['      - {text: dalnet, href: index.ipynb}']
    for part in book:
        lines += [f'      - section: "{part["title"]}"', '        contents:']
        lines += [f'          - {part["folder"]}/{notebook}.ipynb' for notebook, _ in part['chapters']]
    return '\n'.join(lines) + '\n'


def table():
    "The table of chapters as Markdown"
    lines = ['## The chapters', '', '| chapter | module | what you hold at its end |', '|---|---|---|']
    for part in book:
        lines.append(f'| **{part["title"]}** | | |')
        for notebook, holds in part['chapters']:
            title, module = about(part, notebook)
            lines.append(f'| [{title}]({part["folder"]}/{notebook}.ipynb) | {module} | {holds} |')
    return '\n'.join(lines)


def new_quarto():
    "_quarto.yml with the sidebar of the book"
    text = quarto.read_text(encoding='utf-8')
    head, rest = text.split('    contents:\n', 1)
    return f'{head}    contents:\n{sidebar()}\n{rest[rest.index("metadata-files:"):]}'


def new_index():
    "nbs/index.ipynb with the table of the book"
    notebook = json.loads(index.read_text(encoding='utf-8'))
    cell = next(cell for cell in notebook['cells'] if cell['id'] == TABLE)
    after = ''.join(cell['source']).split('\n\n', 2)[2:]                  # what stands below the table
    cell['source'] = '\n\n'.join([table(), *after]).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'


def new_readme():
    "README.md from nbs/index.ipynb: without hidden cells, links and pictures relative to the top"
    notebook = nbformat.read(index, 4)
    notebook.metadata['language_info'] = dict(name='python')              # of the fences
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith('#| hide')]
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    text = re.sub(r'\]\((?!https?:|#)([^)]+)\)', r'](nbs/\1)', text)
    text = re.sub(r'\n{3,}', '\n\n', text)
    return f'<!-- Generated from nbs/index.ipynb by .ci/book.py: edit that. -->\n\n{text.strip()}\n'


wrong = []
for path, make in {quarto: new_quarto, index: new_index, readme: new_readme}.items():
    if path.is_file() and path.read_text(encoding='utf-8') == make(): continue
    wrong.append(path.name)
    if '--check' not in sys.argv: path.write_text(make(), encoding='utf-8')
if wrong and '--check' in sys.argv:
    sys.exit(f'{", ".join(wrong)}: not as chapters.toml and nbs/index.ipynb have it; run python .ci/book.py')
