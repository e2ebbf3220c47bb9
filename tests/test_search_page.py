"""The page of a search, looked at in a real browser, and the commands that it tells people to type."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from studies import distance, finish, open_by_hand
from test_importance import by_hand
from trials_by_hand import RUNGS, WIDE, Search, bowl, search, trial
from typer.testing import CliRunner

from analysis import Facts, render_report, weigh_parameters
from analysis.kept import MOST_BYTES, kept_results
from models.family import Objective, get_family
from models.space import Choice, Float, Range
from tuning.api import load_search
from tuning.cli import app
from tuning.config import make_config
from tuning.report import training_command
from tuning.study import full_config

EVIL = """<script>document.title='owned'</script><img src=x onerror="document.title='owned'">'"&amp;"""


def facts(**changed: Any) -> Facts:
    return Facts(
        **{
            "family": "conv_autoencoder",
            "dataset": "fashion-mnist",
            "standing": "finished",
            "planned": 30,
            "budget": 9.0,
            "default": 0,
            "settings": [("ranked by", "val_mse, lower is better"), ("sampler", "tpe")],
            "fixed": [("beta", "1")],
            "command": "latentune search conv_autoencoder --dataset fashion-mnist --set lr=0.003",
            "yaml": "family: conv_autoencoder\nset:\n  lr: 0.003\n",
            "commands": [("Replay", "latentune replay some 3")],
            "reproducibility": [("fingerprint", "f" * 64)],
            "written": "1 May 2026",
            **changed,
        }
    )


def write(path: Path, made: Search, ranges: dict[str, Range], run_dir: Path | None = None, **changed: Any) -> Path:
    importance = weigh_parameters(made, ranges, rungs=RUNGS)
    path.write_text(render_report(made, ranges, facts(**changed), importance, run_dir))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty trials of eight parameters, two of them failed; in the run folder an analysis of trial 3."""
    folder = tmp_path_factory.mktemp("page")
    made = search(WIDE, 30, bowl, failed=(4, 9), name="some")
    number = made.best.number if made.best else 0
    kept = folder / "run" / "analysis" / f"trial-{number:04d}" / "evaluate"
    kept.mkdir(parents=True)
    (kept / "evaluate.json").write_text('{"split": "test", "mse": 0.0123456, "validation": {"mse": 0.01}}')
    (kept / "options.json").write_text('{"split": "test"}')
    Image.fromarray(np.zeros((40, 80), np.uint8)).save(kept / "worst.png")
    return write(folder / "report.html", made, WIDE, folder / "run")


@pytest.fixture
def opened(chromium: Any, file: Path) -> Iterator[Any]:
    """The page, as nothing went wrong and nothing was fetched."""
    yield from look(chromium, file)


def look(chromium: Any, file: Path, **options: Any) -> Iterator[Any]:
    context = chromium.new_context(offline=True, **options)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url[:5] not in ("file:", "data:") else None)
    page.goto(file.as_uri())
    yield page
    assert said == []
    context.close()


def column(page: Any, index: int) -> list[str]:
    """Texts of the visible cells."""
    rows = page.locator("#table tbody tr:visible")
    return [rows.nth(i).locator("th, td").nth(index).inner_text() for i in range(rows.count())]


# --- in the browser ---------------------------------------------------------------------------------------------------


def test_pictures_load_and_say_what_they_show(opened: Any) -> None:
    images = opened.locator("img")
    assert images.count() == 8  # seven of its own and one that was kept
    loaded = opened.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.alt.length > 15])")
    assert all(complete and width > 0 and described for complete, width, described in loaded)
    assert "0.01235" in opened.locator("#analyses").inner_text()
    assert opened.locator("html").get_attribute("lang") == "en"
    assert opened.title() == "some: conv_autoencoder on fashion-mnist"
    assert opened.locator("h1").count() == 1


def test_numbers_sort_as_numbers_and_missing_ones_last(opened: Any) -> None:
    value, learning_rate = 2, 5 + list(WIDE).index("lr")
    for index in (value, learning_rate, 5 + list(WIDE).index("momentum")):
        button = opened.locator("#table thead button").nth(index)
        head = opened.locator("#table thead th").nth(index)
        for direction, sign in (("ascending", 1), ("descending", -1)):
            button.focus()
            opened.keyboard.press("Enter")
            assert head.get_attribute("aria-sort") == direction
            assert opened.locator("#table [aria-sort]").count() == 1
            cells = column(opened, index)
            numbers = [sign * float(cell) for cell in cells if cell != "–"]
            assert len(numbers) > 5
            assert numbers == sorted(numbers)
            assert all(cell == "–" for cell in cells[len(numbers) :])
    opened.locator("#table thead button").nth(5).click()
    assert column(opened, 5) == sorted(column(opened, 5))  # words


def test_states_are_filtered(opened: Any) -> None:
    assert opened.locator("#shown").inner_text() == "30 of 30 trials"
    opened.get_by_role("checkbox", name="pruned").uncheck()
    assert set(column(opened, 1)) == {"complete", "failed"}
    opened.get_by_role("checkbox", name="complete").uncheck()
    assert column(opened, 0) == ["4", "9"]
    assert opened.locator("#shown").inner_text() == "2 of 30 trials"
    opened.locator("#table thead button").first.click()
    assert column(opened, 0) == ["9", "4"]


def test_a_click_copies(chromium: Any, file: Path) -> None:
    for page in look(chromium, file, permissions=["clipboard-read", "clipboard-write"]):
        page.locator("button.copy").nth(1).click()
        page.get_by_text("Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == facts().yaml


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_can_be_read(chromium: Any, file: Path, width: int, scheme: str) -> None:
    for page in look(chromium, file, viewport={"width": width, "height": 800}, color_scheme=scheme):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # WCAG 2.2, 1.4.3: relative luminance of each text's colour and of the first background behind it.
        contrasts = page.evaluate("""() => {
            const channels = colour => colour.match(/[\\d.]+/g).map(Number);
            const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
                .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const behind = element => {
                const colour = channels(getComputedStyle(element).backgroundColor);
                return colour.length === 4 && colour[3] === 0
                    ? (element.parentElement ? behind(element.parentElement) : [255, 255, 255]) : colour;
            };
            const found = {};
            const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {
                const element = walker.currentNode.parentElement;
                if (!walker.currentNode.textContent.trim() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
                const [one, other] = [light(channels(getComputedStyle(element).color)), light(behind(element))];
                const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
                const name = `${element.tagName}.${element.className}`;
                found[name] = Math.min(found[name] ?? 99, ratio);
            }
            return found;
        }""")
        assert len(contrasts) > 15
        assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")


def test_without_scripts_and_on_paper_it_is_whole(chromium: Any, file: Path) -> None:
    for page in look(chromium, file, java_script_enabled=False):
        assert len(column(page, 0)) == 30
        assert page.locator(".filter:visible, button:visible").count() == 0
    for page in look(chromium, file, color_scheme="dark"):
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.locator("nav:visible, button.copy:visible, .filter:visible").count() == 0
        assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"


def test_whatever_a_search_holds_stays_text(chromium: Any, tmp_path: Path) -> None:
    ranges: dict[str, Range] = {
        f"f{EVIL}": Choice(EVIL, "</script><script>document.title='owned'</script>"),
        "b": Float(0, 1),
    }
    made = search(ranges, 9, lambda p: 1 + p["b"], name=EVIL, metric=f"val_{EVIL}")
    bad = trial(9, "failed", [], {f"f{EVIL}": EVIL, "b": 0.1}, objective=made.objective, reason=EVIL)
    made = Search(EVIL, made.objective, (*made.trials, bad))
    kept = tmp_path / "analysis" / "trial-0000" / "a<b>"
    kept.mkdir(parents=True)
    (kept / "a.json").write_text(json.dumps({EVIL: EVIL}))
    (kept / "x.svg").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>top.x=1</script></svg>"
    )
    evil = {"family": EVIL, "dataset": EVIL, "command": EVIL, "yaml": EVIL, "settings": [(EVIL, EVIL)]}
    for page in look(chromium, write(tmp_path / "evil.html", made, ranges, tmp_path, **evil)):
        assert page.title() == f"{EVIL}: {EVIL} on {EVIL}"
        assert page.locator("h1").inner_text() == EVIL
        assert page.locator("#command").inner_text() == EVIL
        assert column(page, len(ranges) + 5)[-1] == EVIL
        assert EVIL in page.locator("#analyses").inner_text()
        assert page.locator("script").count() == 1
        assert page.locator("[onerror]").count() == 0


@pytest.mark.parametrize("count", [1, 3])
def test_a_search_where_all_failed_or_nothing_was_searched(chromium: Any, tmp_path: Path, count: int) -> None:
    made = Search("s", Objective("val_mse", "min"), tuple(trial(i, "failed", reason="nan") for i in range(count)))
    for page in look(chromium, write(tmp_path / "page.html", made, {}, command="", yaml="")):
        text = page.locator("body").inner_text()
        assert "No trial is complete, so there is no best config yet." in text
        assert "No importance is told: nothing was searched: every field is fixed." in text
        assert page.locator("img").count() == 3
        assert page.locator(".filter").is_hidden()


# --- what it says -----------------------------------------------------------------------------------------------------


def headlines(made: Search, tmp_path: Path, **changed: Any) -> list[tuple[str, str]]:
    text = write(tmp_path / "page.html", made, {"a": Float(0, 1)}, **changed).read_text()
    found = re.findall(r"<strong>(.*?)</strong> <span class=\"note\">(.*?)</span>", text)
    assert len(found) == 4
    return found


def test_the_four_numbers(tmp_path: Path) -> None:
    curves: list[tuple[Any, list[tuple[float, float]]]] = [
        ("complete", [(1, 0.5), (9, 0.40)]),
        ("complete", [(1, 0.4), (9, 0.30)]),
        ("pruned", [(1, 0.9)]),
        ("failed", []),
    ]
    trials = tuple(trial(i, state, curve, {"a": i / 4}) for i, (state, curve) in enumerate(curves))
    best, default, count, epochs = headlines(Search("s", Objective("val_mse", "min"), trials), tmp_path)
    assert best == ("0.3", "trial 1; lower is better")
    assert default == ("−25 %", "0.4 in trial 0")
    assert count == ("4 of 30", "2 complete, 1 pruned, 1 failed")
    assert epochs == ("19", "27 without pruning: 30 % saved; over 13 s")  # 9 + 9 + 1 against 9 + 9 + 9
    told = headlines(Search("s", Objective("val_mse", "min"), trials[:1]), tmp_path, default=None, planned=1)
    assert told[1:3] == [("–", "it was not among the trials"), ("1 of 1", "1 complete")]


# --- what is kept in the run folder -----------------------------------------------------------------------------------


def test_kept_results_are_found_whatever_they_are(tmp_path: Path) -> None:
    for name, number in (("tsne", 1), ("evaluate", 2), ("evaluate-2", 2)):
        folder = tmp_path / "analysis" / f"trial-{number:04d}" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.json").write_text('{"mse": 0.5, "of": {"a b": [1, 2.5]}, "none": null}')
    (tmp_path / "analysis" / "trial-0002" / "evaluate-2" / "evaluate-2.json").write_text('{"mse": ')
    small, large = tmp_path / "analysis" / "trial-0001" / "tsne" / "map.svg", tmp_path / "figures" / "samples.png"
    small.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    small.with_suffix(".png").write_bytes(bytes(5000))
    large.parent.mkdir()
    large.write_bytes(bytes(3000))
    large.with_name("history.png").write_bytes(bytes(3000))
    end, evaluate, again, tsne = kept_results(tmp_path, best=2)
    assert [picture.content for picture in end.pictures] == [bytes(3000)]  # the history is drawn anew
    assert evaluate.title == "Evaluate of trial 2, the best"
    assert evaluate.numbers == (("mse", "0.5"), ("of a b", "1, 2.5"))
    assert again.problem.startswith("evaluate-2.json cannot be read")
    assert (tsne.pictures[0].kind, tsne.pictures[0].title) == ("svg+xml", "Map")
    assert kept_results(tmp_path, best=2, room=3000)[0].left_out == ("samples",)


def test_a_page_stays_small(tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (700, 700), np.uint8)
    for name in "abcdefgh":
        Image.fromarray(noise).save(folder / f"{name}.png")
    path = write(tmp_path / "page.html", search({}, 2, lambda _: 1.0), {}, tmp_path)
    assert MOST_BYTES * 0.7 < path.stat().st_size < 3_000_000
    assert re.search(r"Left out, to keep this page small: [a-h, ]*g, h in ", path.read_text())


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_commands_on_the_page_do_what_they_say(tmp_path: Path) -> None:
    by_hand(tmp_path)
    words = ["report", "by-hand", "--runs-dir", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    told = json.loads(done.output)
    page = tmp_path / "by-hand" / "report.html"
    assert told == {"file": str(page), "bytes": page.stat().st_size}
    text = page.read_text()
    made = load_search("by-hand", tmp_path)
    assert made.best is not None
    assert f"latentune replay by-hand {made.best.number} --runs-dir {tmp_path}" in text
    assert made.best.fingerprint in text
    assert re.search(r"torch</dt><dd>\d", text)
    # The config, as it is written there, makes the same config again.
    (shown,) = re.findall(r'<pre id="yaml"><code>(.*?)</code>', text, re.DOTALL)
    again = make_config(yaml.safe_load(shown))
    assert full_config(get_family(again.family), again, {}) == made.best.config
    command = typer.main.get_command(app)
    search_words = shlex.split(training_command(made.config, made.best).replace("\\\n", ""))[1:]
    typed = command.get_command(None, search_words[0]).make_context("search", search_words[1:]).params  # type: ignore[attr-defined]
    pairs = dict(item.split("=", 1) for item in typed["fixed"])
    from_options = make_config({"family": typed["family"], "set": pairs, "data": {"source": typed["dataset"]}})
    assert full_config(get_family(from_options.family), from_options, {}) == made.best.config
    assert (typed["trials"], typed["train_images"], typed["max_epochs"]) == (1, 64, 3.0)


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    for _ in range(2):
        one = study.propose()
        assert one is not None
        finish(study, one, [distance(one)])
    precious = tmp_path / "precious.html"
    precious.write_text("<p>mine")
    words = ["report", "by-hand", "--runs-dir", str(tmp_path), "--out"]
    failed = CliRunner().invoke(app, [*words, str(precious)])
    assert str(failed.exception).endswith("is there already and is no report; name a new file")
    assert precious.read_text() == "<p>mine"
    for _ in range(2):  # its own page is written anew
        assert CliRunner().invoke(app, [*words, str(tmp_path / "new.html")], catch_exceptions=False).exit_code == 0
    assert "latentune" in (tmp_path / "new.html").read_text()
