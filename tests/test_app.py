"The app, driven through a real browser as a user would"
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from dalnet.config import PRESETS
from dalnet.training import train
pytest.importorskip('gradio', reason='the extra "app" is not installed')
pytest.importorskip('selenium', reason='selenium is not installed')
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402
from shutil import which  # noqa: E402

START = 'from dalnet.app import dalnet_app; dalnet_app()'


@pytest.fixture(scope='module')
def checkpoint(shapes, tmp_path_factory):
    "A network after two steps"
    out = tmp_path_factory.mktemp('app')/'run'
    return train(replace(PRESETS['demo'], data=str(shapes), out=str(out), iterations=2, batch_size=2, seg_start=0,
                         warmup=1))


@contextmanager
def served(checkpoint, *options):
    "The address of a running app"
    port = 20000 + os.getpid() % 20000
    command = [sys.executable, '-c', START, str(checkpoint), '--port', str(port), *options]
    env = os.environ | dict(GRADIO_ANALYTICS_ENABLED='False')
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield f'http://127.0.0.1:{port}', process
    finally:
        process.send_signal(signal.SIGINT)
        try: process.wait(20)
        except subprocess.TimeoutExpired: process.kill()


@pytest.fixture(scope='module')
def browser():
    if not (which('chromium') and which('chromedriver')): pytest.skip('no chromium with its driver')
    options = webdriver.ChromeOptions()
    options.binary_location = which('chromium')
    for flag in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--window-size=1280,1400'):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(which('chromedriver')))
    yield driver
    driver.quit()


def opened(browser, address, process):
    "Open the page as soon as the app answers"
    until = time.monotonic() + 120
    while True:
        try:
            browser.get(address)
            if browser.find_elements(By.CSS_SELECTOR, '#image input[type=file]'): return
        except Exception: pass
        assert process.poll() is None and time.monotonic() < until, process.stdout.read() if process.poll() else 'slow'
        time.sleep(1)


def source(browser, name):
    "Where the picture of a part of the page comes from, or nothing"
    found = browser.find_elements(By.CSS_SELECTOR, f'#{name} img')
    return found[0].get_attribute('src') if found else ''


def test_from_an_image_to_its_mask(checkpoint, browser, shapes):
    path = sorted((shapes/'JPEGImages').glob('*.jpg'))[0].resolve()
    with served(checkpoint) as (address, process):
        opened(browser, address, process)
        wait = WebDriverWait(browser, 120)
        browser.find_element(By.CSS_SELECTOR, '#image input[type=file]').send_keys(str(path))
        wait.until(lambda _: all(source(browser, name) for name in ('overlay', 'mask', 'cam', 'text')))
        assert re.search('disc|ring|star|square|cross|triangle', browser.find_element(By.ID, 'tags').text)
        before = source(browser, 'mask')
        names = [link.get_attribute('download') for link in browser.find_elements(By.CSS_SELECTOR, '#downloads a')]
        assert [name for name in names if name] == [f'{path.stem}.png', f'{path.stem}_overlay.png', f'{path.stem}.json']
        least = browser.find_element(By.CSS_SELECTOR, '#confidence input[type=number]')
        least.send_keys(Keys.CONTROL, 'a')
        least.send_keys('1', Keys.TAB)
        wait.until(lambda _: source(browser, 'mask') not in ('', before))  # no pixel is that sure: all are unlabelled
        browser.find_element(By.CSS_SELECTOR, '#crf input').click()
        time.sleep(1)
        wait.until(lambda _: source(browser, 'mask'))
        hosts = browser.execute_script('return performance.getEntriesByType("resource").map(x => new URL(x.name).host)')
        assert set(hosts) <= {address.removeprefix('http://'), ''}       # nothing comes from, or goes to, another host


def test_a_file_that_is_no_image_and_one_too_large(checkpoint, browser, tmp_path):
    (tmp_path/'bad.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n')
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path/'large.png')
    with served(checkpoint, '--max-megabytes', '1') as (address, process):
        opened(browser, address, process)
        wait = WebDriverWait(browser, 60)
        def page(): return browser.find_element(By.TAG_NAME, 'body').text
        browser.find_element(By.CSS_SELECTOR, '#image input[type=file]').send_keys(str(tmp_path/'bad.png'))
        wait.until(lambda _: 'cannot be decoded' in page())
        assert str(tmp_path) not in page() and process.poll() is None
        browser.get(address)
        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, '#image input[type=file]'))
        browser.find_element(By.CSS_SELECTOR, '#image input[type=file]').send_keys(str(tmp_path/'large.png'))
        wait.until(lambda _: re.search('exceeds|too large|maximum', page(), re.I))
        assert not source(browser, 'overlay')


def test_one_line_where_the_port_is_taken(checkpoint):
    with served(checkpoint) as (address, process):
        import socket
        port = int(address.rpartition(':')[2])
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(('127.0.0.1', port)) == 0: break
            time.sleep(.5)
        command = [sys.executable, '-c', START, str(checkpoint), '--port', str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and 'cannot be listened at' in done.stderr and 'Traceback' not in done.stderr
    assert not Path('dalnet_error.txt').exists()
