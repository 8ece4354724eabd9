"""A hook of MkDocs: pages link to files outside of docs/ as they do on GitHub, and the site takes these along."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)")
PLAIN = (".json", ".png", ".html")
"""Files that a browser shows as they are; others are shown as text."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the files that pages link to. Raises FileNotFoundError where one is not there."""
    pages = [file for file in files if file.is_documentation_page()]
    for name in sorted({name for page in pages for name in OUTSIDE.findall(page.content_string)}):
        files.append(File.generated(config, _address(name), content=(ROOT / name).read_bytes()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Points the links of a page to where the site has the files."""
    return OUTSIDE.sub(lambda found: f"]({_address(found[1])}", markdown)


def _address(name: str) -> str:
    return name if name.endswith(PLAIN) else f"{name}.txt"
