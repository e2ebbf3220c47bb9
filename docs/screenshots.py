"""Walks through MLflow's UI on a finished search, as its user would, and takes the pictures in docs/images.

``tests/test_mlflow_ui.py`` runs it and looks at what it finds. The pages' marks are those of MLflow 3.17.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from PIL import Image

WAIT_MS = 60_000
SETTLE_MS = 3_000
"""Charts move into place."""


def walk(page: Any, url: str, search: str, metric: str, folder: Path) -> dict[str, str]:
    """Visit a search's pages in order and keep a picture of each.

    Args:
        page: of Playwright.
        url: of the search's run, as ``latentune ui NAME`` prints it.
        search: its name; a finished search of autoencoders with a report, which has a champion.
        metric: that ranks it, the lower the better.

    Returns:
        Name of the picture → the text of the page.
    """
    page.set_default_timeout(WAIT_MS)
    page.set_viewport_size({"width": 1400, "height": 820})
    base, experiment = re.findall(r"(.*)/#(/experiments/\d+)", url)[0]
    found: dict[str, str] = {}

    def part(name: str) -> Any:
        return page.locator(f"[data-component-id*='{name}']").first

    def keep(name: str, text: str | None = None) -> None:
        page.wait_for_timeout(SETTLE_MS)
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        shot.quantize(128).save(folder / f"mlflow-{name}.png", optimize=True)
        found[name] = page.locator("body").inner_text() if text is None else text

    page.goto(f"{base}/#{experiment}/runs")
    page.get_by_role("link", name=search, exact=True).wait_for()
    page.wait_for_timeout(SETTLE_MS)
    if part("assistant.chat_panel.close").count():
        part("assistant.chat_panel.close").click()
    part("runnamecellrenderer").click()  # the parent's children
    first = page.get_by_role("link", name=re.compile(r"^000 "))
    first.wait_for()
    for choice in ("sort-select-asc", f"sort-select-best_{metric}"):
        if not page.locator(f"[data-testid='{choice}']").count():
            page.locator("[data-testid='sort-select-dropdown']").click()
        page.locator(f"[data-testid='{choice}']").click()
        page.wait_for_timeout(SETTLE_MS)
    page.mouse.move(10, 10)
    rows = page.locator(".ag-center-cols-container .ag-row, .ag-pinned-left-cols-container .ag-row").evaluate_all(
        "rows => rows.map(row => [+row.getAttribute('row-index'), row.innerText]).sort((a, b) => a[0] - b[0])"
    )
    keep("runs", "\n".join(text for _, text in rows))

    page.goto(url)
    page.get_by_text("Show more").click()
    keep("search")
    page.get_by_role("tab", name="Artifacts").click()
    for name in ("analysis", "report", "report.html"):
        page.get_by_text(name, exact=True).first.click()
    heading = page.frame_locator("iframe").first.locator("h1")
    heading.wait_for()
    keep("report", page.frame_locator("iframe").first.locator("body").inner_text())

    page.goto(f"{base}/#/models/{search}")
    page.get_by_text("champion").last.wait_for()
    keep("model")

    page.goto(url)
    best = re.findall(r"trial (\d+)", found["search"])[0]
    page.get_by_role("link", name=re.compile(rf"^{int(best):03d} ")).first.click()
    page.get_by_role("tab", name="Model metrics").click()
    page.get_by_text(f"best_{metric}").first.wait_for()
    page.wait_for_timeout(SETTLE_MS)
    keep("curves")
    chart = page.get_by_text("reconstructions", exact=True).first
    chart.evaluate("element => element.scrollIntoView({block: 'center'})")
    page.wait_for_function(
        "[...document.images].some(i => i.src.includes('get-artifact') && i.complete && i.naturalWidth > 100)"
    )
    page.locator("img[src*='get-artifact']").first.evaluate("image => image.scrollIntoView({block: 'center'})")
    keep("images")
    return found
