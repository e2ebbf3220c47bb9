"""What ``mkdocs.yml`` adds to the documents: pages from files outside docs/, the notebook, and the reference.

The README is the site's first page. A link from a document to a file outside docs/, which is right for who reads the
repository, leads in the site to a page that shows that file.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from reference import pages

ROOT = Path(__file__).resolve().parent.parent
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "docs/first-search.ipynb": "first-search.md",
}
"""Path in the repository → path under docs/ of the page that it becomes."""

LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)|(?<=(?:src|ref)=\")(?!https?:|#)([^\"#]+)")
"""Where a link or a picture in Markdown, or in the HTML in it, leads."""

LANGUAGE = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".json": "json"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are no files under docs/."""
    made = pages()
    for path, page in MOVED.items():
        if path.endswith(".ipynb"):
            made[page], pictures = _notebook(path)
            for name, content in pictures.items():
                files.append(File.generated(config, name, content=content))
        else:
            made[page] = (ROOT / path).read_text()
    documents = {**{f.src_uri: f.content_string for f in files.documentation_pages()}, **made}
    for path, text in documents.items():
        for target in _targets(path, text):
            if _is_source(target) and (ROOT / target).is_file():
                made[_source_page(target)] = _shown(target)
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to where the site has what they name in the repository."""
    here = page.file.src_uri

    def lead(match: re.Match[str]) -> str:
        target = _in_repository(here, match[0])
        if target in MOVED:
            target = MOVED[target]
        elif _is_source(target):
            target = _source_page(target)
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:
            return match[0]
        return posixpath.relpath(target, posixpath.dirname(here) or ".")

    return "".join(
        part if part.startswith("```") else LINK.sub(lead, part)
        for part in re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    )


def _origin(page: str) -> str:
    """Path in the repository of what a page is made of."""
    return {new: old for old, new in MOVED.items()}.get(page, f"docs/{page}")


def _in_repository(page: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(_origin(page)), link))


def _targets(page: str, text: str) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [_in_repository(page, match[0]) for match in LINK.finditer(text)]


def _is_source(target: str) -> bool:
    return (not target.startswith(("..", "docs/")) and target not in MOVED) or target.startswith("docs/cluster/")


def _source_page(target: str) -> str:
    return f"source/{target.removeprefix('docs/')}.md"


def _shown(target: str) -> str:
    path = ROOT / target
    return (
        f"---\ntitle: {path.name}\nsearch: {{exclude: true}}\n---\n\n# `{target}`\n\n"
        f"````{LANGUAGE.get(path.suffix, 'text')}\n{path.read_text().rstrip()}\n````\n"
    )


def _notebook(path: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, with what it showed, and its pictures by path."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads((ROOT / path).read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            data = output["data"]
            if "image/png" in data:
                name = f"images/notebook-{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![What the cell shows]({name})")
            else:
                html = re.sub(r"\n\s*\n", "\n", "".join(data["text/html"]))
                parts.append(f'<div class="output">\n{html}\n</div>')
    return "\n\n".join(parts) + "\n", pictures
