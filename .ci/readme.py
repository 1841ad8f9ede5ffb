"Write README.md from nbs/index.ipynb; with --check, only compare"
import re, sys
from pathlib import Path
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parents[1]
text, _ = MarkdownExporter().from_filename(root/'nbs/index.ipynb')
text = re.sub(r'\]\((?!https?:|#)([^)]+)\)', r'](nbs/\1)', text)  # links and pictures relative to the top
text = '<!-- Generated from nbs/index.ipynb by .ci/readme.py: edit that. -->\n\n' + text.strip() + '\n'
readme = root/'README.md'
if '--check' not in sys.argv: readme.write_text(text, encoding='utf-8')
elif readme.read_text(encoding='utf-8') != text: sys.exit('README.md does not match nbs/index.ipynb: run python .ci/readme.py')
