"""MLflow's own pages on a finished search, in a real browser: what a user finds there without help."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import environment, free_port, running, without_ray

from tuning import search
from tuning.search_page import write_page

SCRIPT = Path(__file__).resolve().parent.parent / "docs" / "screenshots.py"
KEEP = "LATENTUNE_SCREENSHOTS"
"""Names a folder of the repository to keep the pictures in, such as docs/images."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_search_reads_well_in_mlflow(tmp_path: Path, chromium: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("screenshots", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    screenshots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(screenshots)
    with without_ray():
        result = search(
            "conv_autoencoder",
            data={"source": "digits", "train_images": 600, "val_images": 100},
            trials=10,
            max_epochs=9,
            name="first",
            space={"lr": "1e-4..1e-2:log", "latent_dim": "2..32"},
            set={"batch_size": 32, "optimizer": "adam", "activation": "relu"},
            progress="none",
        )
    assert result.warnings == ()
    assert result.best is not None
    from tuning.analysing import tell_mlflow

    page_file = write_page(result, None, lambda *_: None)
    assert tell_mlflow(result, None, page_file.with_name("report"), (page_file,), {}) is None
    port = free_port()
    with running("ui", "first", "--port", str(port), "--no-browser", cwd=tmp_path, env=environment()) as command:
        command.wait_until(lambda: "MLflow UI: " in command.stderr)
        (url,) = re.findall(rf"MLflow UI: (http://127.0.0.1:{port}/#/experiments/\d+/runs/\w+)", command.stderr)
        page = chromium.new_page()
        found = screenshots.walk(page, url, "first", result.objective.metric, tmp_path)
        page.close()
    counts = result.counts()
    names = re.findall(r"^(\d{3}) lr=", found["runs"], re.MULTILINE)
    assert sorted(map(int, names)) == list(range(10)), "the children, by number and config"
    values = {trial.number: trial.value for trial in result.trials}
    ordered = [values[int(name)] for name in names]
    assert ordered == sorted(ordered, key=lambda value: value or 0.0), "sorted by the metric"
    assert f"Best so far: val_mse {result.best.value:.4g}, trial {result.best.number}" in found["search"]
    assert f"{counts['complete']} complete" in found["search"]
    assert "latentune search conv_autoencoder --name first" in found["search"]
    assert "models:/first@champion" in found["search"]
    assert "Learning curves" in found["report"]
    assert "champion" in found["model"]
    assert f"Trial {result.best.number}: val_mse" in found["model"]
    assert {"val_mse", "train_loss"} <= set(found["curves"].splitlines())
    assert "reconstructions" in found["images"]
    pictures = sorted(tmp_path.glob("mlflow-*.png"))
    assert len(pictures) == len(found) == 6
    for picture in pictures:
        assert picture.stat().st_size < 150_000
        if KEEP in os.environ:
            shutil.copy(picture, SCRIPT.parent.parent / os.environ[KEEP])
