"""Build the documentation from _quarto.yml: with Quarto if it is installed, else in pure Python with smalldocs.
The result loads nothing from other hosts and can be read from the folder, without a server or a network."""
import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unicodedata import normalize
import ziamath
from fontTools import subset
from latex2mathml.converter import convert

root = Path(__file__).resolve().parents[1]
host, base = 'https://dalnet.github.io', '/dalnet/'                       # where the pages are published
notebooks = '''
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
refresh_quarto_yml()
proc_nbs()'''
offline = '''\
// A page opened as a file may not fetch; the search then reads its index from a script
if (location.protocol === "file:") {
  const folder = document.currentScript.src.replace(/[^/]*$/, "");
  window.fetch = () => new Promise((resolve) => {
    const script = document.createElement("script");
    script.src = folder + "search_index.js";
    script.onload = () => resolve(new Response(JSON.stringify(window.searchIndex)));
    document.head.append(script);
  });
}
'''


def run(command, folder):
    "Run a command quietly, or stop with what it said"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'{" ".join(map(str, command[:3]))}: failed in {folder}\n{done.stdout[-3000:]}{done.stderr[-3000:]}')


def page_names(folder):
    "Old and new path of each notebook whose name starts with a number: its page has none, as nbdev's links expect"
    paths = [path for path in folder.rglob('*.ipynb') if path.name[0].isdigit()]
    return {path: path.with_name(re.sub(r'^\d+_', '', path.name)) for path in paths}


def plain_links(text, up):
    "Undo nbdev's links in code, headings and other links, where they do not work or look well; mark the others"
    link = rf'\[(`[^`\n]+`)\]\({re.escape(host + base)}[^)]*\)'
    text = re.sub(rf'\[{link}\]', r'[\1]', text)
    text = re.sub(r'^```.*?^```', lambda code: re.sub(link, r'\1', code[0]), text, flags=re.M | re.S)
    text = re.sub(r'^(?: {4}|#+ ).*$', lambda line: re.sub(link, r'\1', line[0]), text, flags=re.M)
    return re.sub(rf'{re.escape(host + base)}([^)#\s]*)#', rf'{up}\1?api#', text)


def prepare_notebook(path, names, folder):
    "Name pages as nbdev's links do, and let links between pages stay on the site"
    def text(source):
        lines = plain_links(''.join(source), '../'*len(path.relative_to(folder).parts[1:]))
        lines = re.sub(r'^output-file: .*\n', '', lines, flags=re.M)
        lines = re.sub(r'^#\| fig-alt: (?!")(.*)', lambda said: f'#| fig-alt: {json.dumps(said[1])}', lines, flags=re.M)
        for old, new in names.items(): lines = re.sub(rf'(\]\([^)\s]*){old.name}', rf'\g<1>{new.name}', lines)
        return lines.splitlines(keepends=True)

    notebook = json.loads(path.read_text(encoding='utf-8'))
    for cell in notebook['cells']:
        cell['source'] = text(cell['source'])
        for data in (output.get('data', {}) for output in cell.get('outputs', [])):
            if 'text/markdown' in data: data['text/markdown'] = text(data['text/markdown'])
    path.write_text(json.dumps(notebook), encoding='utf-8')


def prepare(work):
    "What nbdev hands to Quarto, made in a copy of the project"
    skip = shutil.ignore_patterns('.*', 'runs', 'dalnet_demo', '__pycache__')
    for name in ('nbs', 'dalnet'): shutil.copytree(root/name, work/name, symlinks=True, ignore=skip)
    for name in ('settings.ini', 'pyproject.toml', '_quarto.yml'): shutil.copy(root/name, work)
    run([sys.executable, '-c', notebooks], work)
    folder = work/'_proc'
    names = page_names(folder)
    for path in folder.rglob('*.ipynb'): prepare_notebook(path, names, folder)
    config = (folder/'_quarto.yml').read_text(encoding='utf-8')
    for old, new in names.items():
        config = config.replace(f'{old.parent.name}/{old.name}', f'{new.parent.name}/{new.name}')
        old.rename(new)
    (folder/'_quarto.yml').write_text(config, encoding='utf-8')
    return folder


def equation(match):
    "A formula of a page as MathML, which browsers draw without a script; its number stands beside it"
    kind, tex = match[1], html.unescape(match[2]).strip()
    tex = re.sub(r'^\\[(\[](.*)\\[)\]]$', r'\1', tex, flags=re.S)
    number = re.search(r'\\tag\{(\w+)\}', tex)
    tex = re.sub(r'\\tag\{\w+\}', '', tex).replace(r'\%', '%')
    drawn = convert(tex, display='block' if kind == 'display' else 'inline')
    drawn = drawn.replace('<math ', f'<math alttext="{html.escape(tex.strip())}" ', 1)
    beside = f'<span class="equation-number">({number[1]})</span>' if number else ''
    return f'<span class="equation {kind}"><span class="formula">{drawn}</span>{beside}</span>'


def api_link(match, path, anchors):
    "A link that nbdev made, if its page documents the name; otherwise, as for private functions, the name alone"
    address, anchor, rest, name = match.groups()
    target = (path.parent/address).resolve() if address else path
    return f'<a href="{address}#{anchor}"{rest}>{name}</a>' if anchor in anchors.get(target, ()) else name


def whole_options(block):
    "Keep each option of a command on one line"
    return re.sub(r'(?<![\w-])--[\w-]+', r'<span class="option">\g<0></span>', block[0])


def polish(path, page, anchors, site):
    "Formulas drawn, links that work, nothing from other hosts, and a search that needs no server"
    page = re.sub(r'<span class="math (inline|display)">(.*?)</span>', equation, page, flags=re.S)
    page = re.sub(r'<a href="([^"?]*)\?api#([^"]*)"([^>]*)>(.*?)</a>',
                  lambda match: api_link(match, path, anchors), page, flags=re.S)
    page = re.sub(r'<pre class="sourceCode (?:sh|bash).*?</pre>', whole_options, page, flags=re.S)
    page = re.sub(r'<script[^>]*\ssrc="https?:[^>]*>\s*</script>\s*', '', page)
    page = re.sub(r'<link[^>]*\shref="https?:[^>]*rel="stylesheet"[^>]*>\s*', '', page)
    page = re.sub(r'<link[^>]*rel="stylesheet"[^>]*\shref="https?:[^>]*>\s*', '', page)
    up = '../'*len(path.relative_to(site).parts[1:])
    page = page.replace('<head>', f'<head>\n<script src="{up}site_libs/offline.js"></script>', 1)
    if path == site/'404.html': page = page.replace('<head>', f'<head>\n<base href="{base}">', 1)  # for any folder
    return page


def math_font(site):
    "Give the site the glyphs of STIX Two Math that its formulas use: not every system has a font with mathematics"
    formulas = ' '.join(re.sub('<[^>]+>', '', ' '.join(re.findall('<math.*?</math>', path.read_text(encoding='utf-8'))))
                        for path in site.rglob('*.html'))
    used = set(normalize('NFKC', html.unescape(formulas)))
    options = subset.Options(flavor='woff', layout_features=['ssty'])
    font = subset.load_font(Path(ziamath.__file__).parent/'fonts/STIXTwoMath-Regular.ttf', options)
    cut = subset.Subsetter(options)
    cut.populate(unicodes=[code for code in font.getBestCmap() if normalize('NFKC', chr(code)) in used])  # italics too
    cut.subset(font)
    subset.save_font(font, site/'site_libs/stix_two_math.woff', options)


def build(work, builder):
    "The folder of the finished site"
    folder = prepare(work)
    smalldocs = [sys.executable, '-m', 'smalldocs.cli', 'render', '.']
    run(['quarto', 'render', '--no-cache'] if builder == 'quarto' else smalldocs, folder)
    site = (folder/'_docs').resolve()
    pages = {path.resolve(): path.read_text(encoding='utf-8') for path in site.rglob('*.html')}
    anchors = {path: set(re.findall(r'\sid="([^"]+)"', page)) for path, page in pages.items()}
    for path, page in pages.items(): path.write_text(polish(path, page, anchors, site), encoding='utf-8')
    for path in site.rglob('*.css'):
        style = path.read_text(encoding='utf-8')
        path.write_text(re.sub(r'@import url\(["\']?https?:[^)]*\);?', '', style), encoding='utf-8')
    math_font(site)
    index = (site/'search.json').read_text(encoding='utf-8')
    (site/'site_libs/search_index.js').write_text(f'window.searchIndex = {index};\n', encoding='utf-8')
    (site/'site_libs/offline.js').write_text(offline, encoding='utf-8')
    return site


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--out', default='_docs', help='the folder to write; an earlier site in it is replaced')
best = 'quarto' if shutil.which('quarto') else 'smalldocs'
parser.add_argument('--builder', choices=['quarto', 'smalldocs'], default=best, help='here by default %(default)s')
args = parser.parse_args()
out = Path(args.out).resolve()
if out.exists() and any(out.iterdir()) and not (out/'site_libs').is_dir():
    sys.exit(f'--out: {out} holds something other than a site; choose an empty folder')
with tempfile.TemporaryDirectory() as work:
    site = build(Path(work), args.builder)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(site, out)
print(f'{len(list(out.rglob("*.html")))} pages, built with {args.builder}: {out}/index.html')
