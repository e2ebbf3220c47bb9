"""What people see in a notebook, in a real kernel: the live view, results as HTML, the example that the docs show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import without_ray
from trials_by_hand import trial

from tuning import search
from tuning.notebook import trial_html
from tuning.results import SearchResult

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "first-search.ipynb"
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    with without_ray():
        return search(
            "conv_autoencoder",
            data={"source": "digits", "train_images": 64, "val_images": 16},
            trials=3,
            max_epochs=1,
            name="small",
            space={"lr": "1e-4..1e-2:log", "optimizer": "adam,sgd", "momentum": "0..0.9"},
            tracking_uri="none",
            runs_dir=tmp_path_factory.mktemp("runs"),
            progress="none",
            pictures=False,
        )


def test_table_has_a_row_a_trial(result: SearchResult) -> None:
    table = result.table()
    assert table.index.name == "trial"
    assert list(table.index) == [0, 1, 2]
    assert list(table.columns[:4]) == ["state", "val_mse", "epochs", "seconds"]
    assert list(table.columns)[-1] == "reason"
    assert str(table["val_mse"].dtype) == "float64"
    for one in result.trials:
        row = table.loc[one.number]
        assert row["state"] == one.state
        assert row["val_mse"] == one.value
        assert row["lr"] == one.params["lr"]
    assert set(table.columns[4:-1]) == {name for one in result.trials for name in one.params}
    assert list(replace(result, trials=()).table().columns) == ["state", "val_mse", "epochs", "seconds", "reason"]


def test_html_escapes_what_it_shows(result: SearchResult) -> None:
    bad = trial(7, "failed", params={EVIL: EVIL}, reason=f"{EVIL} [/]")
    html = trial_html(bad)
    assert html == bad._repr_html_()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 3
    whole = result._repr_html_()
    assert result.best is not None
    assert f"<td>{result.best.number}</td>" in whole
    assert "no trial is complete yet" in replace(result, trials=(bad,))._repr_html_()


def outputs(cells: list[Any]) -> list[Any]:
    return [output for cell in cells for output in cell.get("outputs", [])]


@pytest.mark.slow
def test_the_example_runs_and_says_nothing_besides(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the packages nbclient and ipykernel")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, 4)
    shown = outputs(notebook.cells)
    client.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    made = outputs(notebook.cells)
    assert [output for output in made if output.output_type == "stream"] == [], "noise"
    live = made[0].data["text/html"]
    assert "from-a-notebook" in live
    assert "8/8" in live
    assert "best" in live
    assert "image/png" in made[-1].data
    # What the file holds is what came out of it, less the plain texts, which nobody sees.
    assert [set(output.data) for output in shown] == [set(output.data) - {"text/plain"} for output in made]
    assert NOTEBOOK.stat().st_size < 150_000
