"""The documentation as its readers meet it: every page in a browser without a network, on a phone and in the dark.
The browser is Chromium with its driver; the tests that need it are skipped where it is not installed."""
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
import pytest
if sys.version_info >= (3, 11): import tomllib
else: import tomli as tomllib

ROOT = Path(__file__).parents[1]
BOOK = tomllib.loads((ROOT/'chapters.toml').read_text(encoding='utf-8'))['part']
PAGES = {f'{part["folder"]}/{re.sub("^[0-9]+_", "", name)}': ROOT/f'nbs/{part["folder"]}/{name}.ipynb'
         for part in BOOK for name, _ in part['chapters']}
PHONE, DESK = (390, 844), (1280, 900)

IN_PROSE = '''
const copy = document.querySelector("main").cloneNode(true);
copy.querySelectorAll("pre, code, script, style").forEach(element => element.remove());
return copy.textContent;'''
CONTRAST = '''
const numbers = text => text.match(/[0-9.]+/g).map(Number);
const rgba = text => numbers(text).map((value, i) => i < 3 && text.startsWith("color") ? 255*value : value);
const over = (top, under) => under.map((value, i) => top[i]*(top[3] ?? 1) + value*(1 - (top[3] ?? 1)));
const linear = value => value <= 10 ? value/255/12.92 : ((value/255 + .055)/1.055)**2.4;
const luminance = colour => .2126*linear(colour[0]) + .7152*linear(colour[1]) + .0722*linear(colour[2]);
const layers = [];
let opacity = 1;
for (let element = arguments[0]; element; element = element.parentElement) {
  layers.unshift(rgba(getComputedStyle(element).backgroundColor));
  opacity *= getComputedStyle(element).opacity;
}
const under = layers.reduce((below, layer) => over(layer, below), [255, 255, 255]);
const ink = rgba(getComputedStyle(arguments[0]).color);
const text = over([...ink.slice(0, 3), (ink[3] ?? 1)*opacity], under);
const [high, low] = [luminance(text), luminance(under)].sort((a, b) => b - a);
return (high + .05)/(low + .05);'''


class Page(HTMLParser):
    "The ids, links, images and loaded files of a page"
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.images, self.loads = set(), [], [], []
        text = path.read_text(encoding='utf-8')
        self.feed(re.sub(r'data:image/[^"]{99,}', 'data:', text))         # pictures inside the page, which are long

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if 'id' in given: self.ids.add(given['id'])
        if tag == 'a' and given.get('href'): self.links.append(given['href'])
        if tag == 'img': self.images.append(given)
        if tag in ('script', 'img', 'iframe', 'source', 'video') and given.get('src'): self.loads.append(given['src'])
        if tag == 'link' and given.get('rel') in ('stylesheet', 'icon'): self.loads.append(given['href'])


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site, built in pure Python by the command that CONTRIBUTING names"
    pytest.importorskip('ziamath', reason='the formulas of the site need ziamath, of the extra dev')
    out = tmp_path_factory.mktemp('site')/'docs'
    build = [sys.executable, ROOT/'.ci/site.py', '--builder', 'smalldocs', '--out', out]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope='module')
def pages(site): return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob('*.html')}


@pytest.fixture(scope='module')
def browser():
    "Chromium without a window and without a network"
    webdriver = pytest.importorskip('selenium.webdriver', reason='the browser is driven by selenium, of the extra dev')
    chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    driver = shutil.which('chromedriver')
    if not (chromium and driver): pytest.skip('Chromium or its driver is not installed (apt install chromium-driver)')
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    alone = 'host-resolver-rules=MAP * ~NOTFOUND'
    for flag in ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-dev-shm-usage', alone):
        options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield window
    window.quit()


def look(browser, page, size=DESK, scheme='light'):
    "Open a page in a window of a size, with the reader's colour scheme"
    width, height = size
    screen = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)
    media = dict(features=[dict(name='prefers-color-scheme', value=scheme)])
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', media)
    browser.get(page.as_uri())


def find(browser, words):
    "The results of the site's search, as elements"
    from selenium.webdriver.support.ui import WebDriverWait
    browser.find_element('css selector', '#quarto-header .smalldocs-search input').send_keys(words)
    return WebDriverWait(browser, 20).until(lambda window: window.find_elements('css selector', '.search-result'))


def test_every_chapter_is_a_page_and_every_link_leads_somewhere(site, pages):
    assert set(pages) == {'index.html', '404.html', *(f'{name}.html' for name in PAGES)}
    wrong = []
    for name, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or link.startswith('//'): continue
            target = (site/name).parent/unquote(address.path) if address.path else site/name
            if target.is_dir(): target = target/'index.html'
            found = pages.get(target.resolve().relative_to(site.resolve()).as_posix()) if target.exists() else None
            lost = found and address.fragment and unquote(address.fragment) not in found.ids
            if lost or not target.exists(): wrong.append(f'{name}: {link}')
    assert not wrong, wrong


def test_pages_load_nothing_from_other_hosts(site, pages):
    outside = [(name, load) for name, page in pages.items() for load in page.loads if re.match(r'(https?:)?//', load)]
    assert not outside, outside
    for path in site.rglob('*.css'):
        found = re.findall(r'(?:@import|url\()[^;)]*https?://[^;)]*', path.read_text(encoding='utf-8'))
        assert not [url for url in found if 'data:' not in url], path
    assert not any('https://dalnet.github.io' in link for page in pages.values() for link in page.links)


def test_every_picture_says_what_it_shows(pages):
    silent = [name for name, page in pages.items() for image in page.images if not image.get('alt')]
    assert not silent, silent


def test_chapters_show_equations_code_and_where_the_code_is(site, pages):
    lea = (site/'method/lea.html').read_text(encoding='utf-8')
    assert 'At the end of this chapter you hold' in lea and '<math' in lea and '>(6)</span>' in lea
    text = re.sub(r'<[^>]+>', '', lea)                                    # without the marks of syntax colours
    assert 'def lea_loss(' in text and 'softplus' in text                 # the body, not the signature alone
    for name, notebook in PAGES.items():
        if not re.search(r'"#\| exports?\\n",\n +".*\n? *"?def [a-z]', notebook.read_text(encoding='utf-8')): continue
        links = [link for link in pages[f'{name}.html'].links if '/blob/main/dalnet/' in link]
        assert links, f'{name}: no link to the source'


def test_the_front_page_leads_to_the_paper_the_commands_and_the_citation(pages):
    links = {link.removeprefix('./') for link in pages['index.html'].links}
    assert links >= {'tutorials/paper.html', 'tutorials/your_own_images.html', 'use/cli.html'}
    assert any(link.endswith('#citing') for link in links)


def test_an_unknown_address_in_any_folder_shows_a_page_with_styles(site, pages):
    assert '<base href="/dalnet/">' in (site/'404.html').read_text(encoding='utf-8')
    assert all((site/load).exists() for load in pages['404.html'].loads)


def test_every_page_works_on_a_phone_without_a_network(site, browser):
    wrong = []
    for path in sorted(site.rglob('*.html')):
        if path == site/'404.html': continue                              # for the server alone: its links start with /
        look(browser, path, PHONE)
        wide = browser.execute_script('return document.documentElement.scrollWidth')
        pictures = browser.execute_script('''return [...document.images].filter(image => {
            image.loading = "eager"; return image.complete && !image.naturalWidth }).length''')
        formulas = browser.execute_script('''return [...document.querySelectorAll("math")].filter(
            formula => !formula.closest("details") && formula.getBoundingClientRect().height < 5).length''')
        raw = re.findall(r'\$\$|\\[a-zA-Z]{2,}|\\\(|\\\[', browser.execute_script(IN_PROSE))
        said = [line['message'] for line in browser.get_log('browser') if line['level'] in ('SEVERE', 'WARNING')]
        seen = dict(width=wide if wide > PHONE[0] else 0, pictures=pictures, formulas=formulas, raw=raw, console=said)
        if any(seen.values()): wrong.append((path.relative_to(site).as_posix(), seen))
    assert not wrong, json.dumps(wrong, indent=1)


def test_a_number_never_lies_over_its_equation(site, browser):
    look(browser, site/'method/lea.html', PHONE)
    boxes = browser.execute_script('''return [...document.querySelectorAll(".equation-number")].map(number => [
        number.previousSibling.getBoundingClientRect().right, number.getBoundingClientRect().left,
        number.getBoundingClientRect().right])''')
    assert len(boxes) == 3 and all(formula <= left and right <= PHONE[0] for formula, left, right in boxes), boxes


def test_long_commands_are_wrapped_not_cut(site, browser):
    for name in ('index', 'tutorials/your_own_images', 'use/cli'):
        look(browser, site/f'{name}.html', PHONE)
        cut = browser.execute_script('''return [...document.querySelectorAll("pre.sourceCode")].filter(
            block => block.scrollWidth > block.clientWidth + 1).map(block => block.textContent.slice(0, 60))''')
        assert not cut, (name, cut)


def test_search_finds_a_function(site, browser):
    look(browser, site/'index.html')
    first = find(browser, 'gia_loss')[0]
    assert 'gia_loss' in first.text
    first.click()
    assert browser.current_url.endswith('/method/gia.html#gia_loss')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_can_be_read_by_day_and_by_night(scheme, site, browser):
    look(browser, site/'method/gia.html', DESK, scheme)
    dark = browser.execute_script('return document.documentElement.classList.contains("quarto-dark")')
    assert dark == (scheme == 'dark')
    find(browser, 'gia_loss')
    parts = ('main p', 'main p a', 'main p code', 'main math', 'main pre code', '#quarto-sidebar a', '#TOC a',
             'footer a', '.navbar-title', '.navbar .nav-link', '.search-result-title', '.search-result-text', 'mark')
    for part in parts:
        element = browser.find_element('css selector', part)
        contrast = browser.execute_script(CONTRAST, element)
        assert contrast >= 4.5, f'{part}: {contrast:.2f} to 1'
