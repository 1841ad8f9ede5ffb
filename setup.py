"Build `dalnet` from what `settings.ini` says."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

names = 'coco', 'crf', 'export', 'hub', 'app', 'dev'
extras = {name: cfg[f'{name}_requirements'].split() for name in names}
for name in ('app', 'coco', 'crf', 'export', 'hub'): extras['dev'] += extras[name]  # the tests use them

# PyPI shows the README away from its repository, so its relative links and pictures become addresses
readme = (here/'README.md').read_text(encoding='utf-8')
raw = cfg['git_url'].replace('github.com', 'raw.githubusercontent.com')
readme = re.sub(r'(!\[[^]]*\]\()(?!https?:|#)', rf"\g<1>{raw}/{cfg['branch']}/", readme)
readme = re.sub(r'(?<!!)(\[[^][]*\]\()(?!https?:|#)', rf"\g<1>{cfg['git_url']}/blob/{cfg['branch']}/", readme)

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', url=cfg['git_url'],
    long_description=readme, long_description_content_type='text/markdown',
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=['dalnet', 'dalnet.*']), include_package_data=True, zip_safe=False,
    install_requires=cfg['requirements'].split(), extras_require=extras,
    package_data={'dalnet': ['py.typed', 'grids/*.toml']},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    project_urls={
        'Documentation': f"{cfg['doc_host']}{cfg['doc_baseurl']}", 'Source': cfg['git_url'],
        'Changelog': f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md", 'Issues': f"{cfg['git_url']}/issues",
        'Paper': 'https://arxiv.org/abs/2409.15801'},
    classifiers=[
        'Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Intended Audience :: Developers',
        'Operating System :: OS Independent', 'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 15)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition', 'Typing :: Typed'],
)
