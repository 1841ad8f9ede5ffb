"Build `dalnet` from what `settings.ini` says."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

extras = {name: cfg[f'{name}_requirements'].split() for name in ('app', 'coco', 'crf', 'dev')}
extras['dev'] += extras['app'] + extras['coco'] + extras['crf']  # the tests use everything

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', url=cfg['git_url'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=['dalnet', 'dalnet.*']), include_package_data=True, zip_safe=False,
    install_requires=cfg['requirements'].split(), extras_require=extras,
    package_data={'dalnet': ['py.typed', 'grids/*.toml']},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research',
                 'Intended Audience :: Developers', 'Programming Language :: Python :: 3'],
)
