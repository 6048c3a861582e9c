"""Hooks of MkDocs: Markdown files outside docs/ become pages, and equations become MathML.

GitHub draws the same equations from LaTeX: a fence of `math`, or $`…`$ within a line. Browsers draw MathML without a
script.
"""

import os
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Files of the repository that the site has outside of docs/, and where it has them.
ADDED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "config/README.md": "configuration.md",
    "workflow/schemas/config.schema.json": "config.schema.json",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE",
}
SOURCES = {uri: name for name, uri in ADDED.items()}
EQUATION = re.compile(r"\$`([^`]+)`\$")
TARGET = re.compile(r'(\]\(|<img src=")(?!\w+:|#)([^)"#\s]+)')


def on_config(config):
    fence = {"name": "math", "class": "math", "format": mathml}
    config.mdx_configs["pymdownx.superfences"]["custom_fences"].append(fence)


def on_files(files, config):
    for name, uri in ADDED.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))


def on_page_markdown(markdown, page, config, files):
    """Turn links between files of the repository into links between pages, and equations within a line into MathML."""
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def link(match):
        name = os.path.normpath(os.path.join(os.path.dirname(source), match[2]))
        uri = ADDED.get(name, name.removeprefix("docs/"))
        return match[1] + os.path.relpath(uri, os.path.dirname(page.file.src_uri) or ".")

    return EQUATION.sub(lambda match: convert(match[1]), TARGET.sub(link, markdown))


def mathml(source, language, css_class, options, md, **kwargs):
    """Return the MathML of a fence of `math`."""
    return convert(source, display="block")
