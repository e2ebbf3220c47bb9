"""The documentation as a site: built strictly, its links followed, its reference held against the code, looked at."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote, urlsplit

import pytest
import typer

from models.datasets import DATASETS
from models.family import FAMILIES, get_family
from tuning.cli import app
from tuning.config import SearchConfig

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page leads to, loads, is led to by, and says in code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.marks: set[str] = set()
        self.code: set[str] = set()
        self.headings: set[str] = set()
        self._inside: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.marks |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if "src" in found or (tag == "link" and found.get("rel") not in ("canonical", "prev", "next")):
            self.loads.append(found.get("src") or found["href"])
        if tag in ("code", "h2", "h3"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if self._inside:
            (self.code if self._inside[-1] == "code" else self.headings).add(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_leads_somewhere_and_nothing_is_fetched(site: Path, pages: dict[str, Page]) -> None:
    assert len(pages) > 25
    for name, page in pages.items():
        for link in page.loads + page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                assert link not in page.loads, f"{name} loads {link}"
                continue
            target = (site / name).parent.joinpath(unquote(parts.path)).resolve() if parts.path else site / name
            assert target.is_file(), f"{name}: {link}"
            if parts.fragment and target.suffix == ".html":
                other = pages[target.relative_to(site).as_posix()]
                assert unquote(parts.fragment) in other.marks | {"__skip"}, f"{name}: {link}"


def test_every_document_has_a_page(pages: dict[str, Page]) -> None:
    documents = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert documents | {"index.html", "contributing.html", "changelog.html", "first-search.html"} <= set(pages)
    assert {"source/cluster.yaml.html", "source/models/vae.py.html", "source/cluster/slurm.sh.html"} <= set(pages)


def test_the_reference_has_all_that_the_code_has(pages: dict[str, Page]) -> None:
    commands, families = pages["reference/commands.html"], pages["reference/families.html"]
    group: Any = typer.main.get_command(app)
    assert set(group.commands) <= commands.headings
    for command in group.commands.values():
        options = {word for parameter in command.params for word in parameter.opts if word.startswith("--")}
        assert options - {"--help"} <= commands.code, command.name
    assert set(FAMILIES) <= families.headings
    for name in FAMILIES:
        assert set(get_family(name).Config.model_fields) <= families.code, name
    assert set(DATASETS) <= pages["reference/datasets.html"].code
    fields = {info.alias or name for name, info in SearchConfig.model_fields.items()}
    chosen = {
        word for name in ("sampler", "scheduler") for word in get_args(SearchConfig.model_fields[name].annotation)
    }
    assert fields | chosen <= pages["reference/settings.html"].code
    assert {"LATENTUNE_RUNS_DIR", "LATENTUNE_STUDY_URL"} <= pages["reference/environment.html"].code
    assert {"search", "SearchResult", "embed"} <= pages["reference/python.html"].headings


@pytest.mark.parametrize("width", [400, 1280])
def test_it_fits_a_screen_and_is_searched_without_a_server(
    chromium: Any, site: Path, pages: dict[str, Page], width: int
) -> None:
    asked: list[str] = []
    errors: list[str] = []
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    for name in sorted(pages):
        page.goto((site / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    page.goto((site / "quickstart.html").as_uri())
    if width < 960:
        page.locator("label[for='__search']").first.click()
    else:
        page.locator("input.md-search__input").click()
    page.keyboard.type("report-timeout", delay=20)  # the search hears keys
    page.locator(".md-search-result__item a[href*='commands.html']").first.wait_for()
    page.close()
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
