"""Published experiments as data: what a file may say, how it is done, and how its numbers are set beside ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import read_json, run, running, without_ray

from models.errors import UserError
from tuning.experiment import BUDGETS, Budget, ExperimentFile, find_experiment, read_experiment, shipped
from tuning.paths import NoValueError, parse_path
from tuning.published_rows import compare_rows
from tuning.reproduction import Done, Means, Reproduction, reproduce
from tuning.reproduction_page import render_page, render_table, write_results

REPORTS = ("bottaro-2020", "capettini-2022", "cedergren-2019", "giuliani-2022", "guatto-2022")

MINE = """
title: My <b>experiment</b>
report: A | B
data: {source: digits, train_images: 300, val_images: 100}
budgets:
  smoke: {search: {max_epochs: 1}, train: {max_epochs: 1}}
steps:
  grid:
    do: search
    family: conv_autoencoder
    set: {filters: 4}
    space: {latent_dim: [2, 4]}
    sampler: grid
    scheduler: none
    max_epochs: 2
  best: {do: train, family: conv_autoencoder, like: grid, set: {lr: 1e-3}, max_epochs: 3}
  test: {do: evaluate, of: grid, trials: all}
  codes: {do: embed, of: best, methods: [pca], count: 50}
rows:
  - {what: latent 2, where: Table 1, id: two, published: 0.05, ours: "test.trials[latent_dim=2].mse", better: lower}
  - {what: latent 4, where: Table 1, id: four, published: 0.04, ours: "test.trials[latent_dim=4].mse", better: lower}
  - {what: order, where: Table 1, order: [two, four], better: higher, unit: "%"}
  - {what: "k-NN <script>", where: Codes, ours: codes.knn_accuracy, unit: "%", note: "a | b"}
pictures:
  - {title: PCA, where: Codes, published: "a <i>map</i>", of: codes, figure: pca}
"""


def mine(**changed: Any) -> dict[str, Any]:
    content = yaml.safe_load(MINE)
    assert isinstance(content, dict)
    return {**content, **changed}


def done_at(folder: Path) -> dict[str, int]:
    """When each result was written, in nanoseconds."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("steps/*/step.json")}


# --- the files that come with latentune -------------------------------------------------------------------------------


def test_all_five_reports_are_there() -> None:
    assert tuple(shipped()) == REPORTS


@pytest.fixture(params=REPORTS)
def report(request: pytest.FixtureRequest) -> ExperimentFile:
    return find_experiment(request.param)


def test_every_file_is_right_at_every_budget(report: ExperimentFile) -> None:
    assert tuple(report.at) == BUDGETS
    smoke, full = report.at["smoke"], report.at["full"]
    assert list(smoke.steps) == list(full.steps)
    assert smoke.rows == full.rows, "what is published does not depend on a budget"
    assert {experiment.data["source"] for experiment in report.at.values() if experiment is not smoke} != {"digits"}
    assert smoke.data["source"] == "digits", "the smallest budget needs no files"
    assert any(row.number is not None for row in full.rows)
    assert full.pictures


def published(name: str) -> dict[str, float]:
    rows = find_experiment(name).at["full"].rows
    return {row.id or row.what: row.number for row in rows if row.number is not None}


def test_the_published_numbers_agree_with_one_another() -> None:
    guatto = published("guatto-2022")
    for label in ("SGD", "Adamax", "Adam + L2", "Adam + L2, batch norm"):
        train, val, gap = (
            guatto[f"{label}, {what}"] for what in ("training MSE", "validation MSE", "generalisation gap")
        )
        assert abs(abs(val - train) - gap) < 2e-5, label
    points = [guatto[f"point-{number}"] for number in (9, 126, 58, 14, 3)]
    assert guatto["study-best"] == min(points) == guatto["point-126"]
    assert guatto["final-val"] < guatto["study-best"], "trained for longer"
    bottaro = published("bottaro-2020")
    rates = [bottaro[f"lr-{i}"] for i in range(1, 6)]
    assert min(rates) == bottaro["lr-2"] == bottaro["latent dimension 6, test MSE"] == bottaro["MSE on MNIST.mat"]
    assert bottaro["the best learning rate"] == 0.005
    cedergren = published("cedergren-2019")
    accuracies = {name: value for name, value in cedergren.items() if re.match(r"(relu|sigmoid)-(128|256|512)", name)}
    assert len(accuracies) == 18
    for name in (name for name in accuracies if name.startswith("relu")):
        assert accuracies[name] >= accuracies[name.replace("relu", "sigmoid")]


def test_the_numbers_are_those_of_the_notes() -> None:
    known = {
        "guatto-2022": "0.13977 0.13997 0.00019 0.04662 0.04378 0.00283 0.03726 0.03506 0.0022 0.03327 0.03079 0.00247 "
        "0.02214 0.01748 0.02154 0.02113 0.02628 0.012631 0.01162 0.00653 0.3393 0.42168 0.8827 0.8655 0.26041 0.32577 "
        "0.8919 0.9069 62303",
        "capettini-2022": "16 10 0.004 1e-5 0.87 0.9156 4 8",
        "giuliani-2022": "5 300 20 0.85",
        "bottaro-2020": "0.0221 0.0218 0.0219 0.0249 0.0733 6",
        "cedergren-2019": "0.99 0.75 0.57 0.16 0.21 0.25 0.12 0.02 0.92 0.93 0.94 0.91 0.89 0.88 0.8 0.3 0.2 0.895",
    }
    for name, numbers in known.items():
        assert set(map(float, numbers.split())) <= set(published(name).values()), name


# --- what a file may say ----------------------------------------------------------------------------------------------


def problems_of(content: dict[str, Any]) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_experiment(content)
    return [str(problem) for problem in caught.value.problems]


def test_fields_that_are_wrong_are_told_all_at_once_and_once() -> None:
    content = mine(colour="red")
    content["steps"]["best"]["epochs"] = 3
    content["steps"]["codes"]["do"] = "embbed"
    content["rows"][0]["ours"] = "test..mse"
    content["rows"][3]["better"] = "lower"
    told = problems_of(content)
    assert len(told) == 5
    for expected in ("colour", "steps.best.epochs", "did you mean 'embed'", "write a path as", "needs a published"):
        assert sum(expected in line for line in told) == 1, expected


def test_what_does_not_fit_together_is_told_all_at_once() -> None:
    content = mine()
    content["steps"]["grid"]["set"]["filterz"] = 3
    content["steps"]["grid"]["space"]["latent_dim"] = [0, 4]
    content["steps"]["gan"] = {"do": "train", "family": "gan", "smoke": {"max_epochs": 1}}
    content["steps"]["map"] = {"do": "embed", "of": "gan"}
    content["steps"]["tuned"] = {"do": "finetune", "of": "grid", "set": {"frosen": 1}}
    content["steps"]["late"] = {"do": "evaluate", "of": "later", "data": {"sourze": "digits"}}
    content["rows"][0]["ours"] = "tests.mse"
    content["rows"][2]["order"] = ["two", "three"]
    content["pictures"][0]["of"] = "code"
    told = "\n".join(problems_of(content))
    for expected in (
        "filterz",
        "latent_dim",
        "steps.map.of",
        "steps.late.of",
        "did you mean 'test'",
        "'three'",
        "'codes'",
    ):
        assert expected in told, expected
    assert told.count("filterz") == 1, "once, not once a budget"


def test_budgets_change_what_they_say_and_nothing_else() -> None:
    found = read_experiment(mine())
    assert [found[budget].steps["grid"].max_epochs for budget in BUDGETS] == [1, 2, 2]  # type: ignore[union-attr]
    assert found["smoke"].steps["codes"] == found["full"].steps["codes"]
    assert "did you mean 'small'" in problems_of(mine(budgets={"smal": {}}))[0]
    assert "did you mean 'search'" in problems_of(mine(budgets={"small": {"serch": {}}}))[0]


@pytest.mark.parametrize("text", ["", ".a", "a..b", "a[", "a[]", "a[b]", "a b", "a[b=]", "a.b[0"])
def test_paths_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_path(text)


def test_paths() -> None:
    results = {
        "a": {"b": [{"config": {"lr": 0.01, "on": True}, "x": 1}, {"config": {"lr": 1e-5}, "x": 2}], "none": None}
    }
    for text, value in (
        ("a.b[0].x", 1),
        ("a.b[-1].x", 2),
        ("a.b[lr=0.00001].x", 2),
        ("a.b[lr=1e-2,on=true].x", 1),
        ("a.b[x=2].config.lr", 1e-5),
    ):
        assert parse_path(text).find(results) == value
    for text in ("z.b", "a.c", "a.b[2].x", "a.b[lr=3].x", "a.b.x", "a.none"):
        with pytest.raises(NoValueError):
            parse_path(text).find(results)


# --- rows -------------------------------------------------------------------------------------------------------------


def compared(row: dict[str, Any], ours: Any, **done: Any) -> Any:
    """One row against a step that gave ``ours``."""
    steps = {"s": {"do": "train", "family": "conv_autoencoder"}}
    content = {"title": "", "report": "", "steps": steps, "rows": [{"what": "", "where": "", "ours": "s.x", **row}]}
    experiment = read_experiment(content)["full"]
    step = replace(Done("s", "train", "", 1.0, {"x": ours}), **done)
    (found,) = compare_rows(Reproduction("r", experiment, "full", 0, Path(), {"s": step}))
    return found


@pytest.mark.parametrize(
    ("row", "ours", "verdict"),
    [
        ({"published": 0.5, "better": "lower"}, 0.4, "better"),
        ({"published": 0.5, "better": "lower"}, 0.6, "worse"),
        ({"published": 0.5, "better": "higher"}, 0.6, "better"),
        ({"published": 0.5, "better": "higher"}, 0.4, "worse"),
        ({"published": 0.5, "better": "lower"}, 0.505, "same"),
        ({"published": 0.5, "better": "lower"}, 0.5051, "worse"),
        ({"published": 0.5, "better": "lower", "tolerance": 0.2}, 0.7, "same"),
        ({"published": 0.5, "better": "lower", "magnitude": True}, -0.4, "better"),
        ({"published": 4, "published_over": 8, "better": "lower"}, 0.5, "same"),
        ({"published": 6, "better": "same", "tolerance": 0}, 7, "differs"),
        ({"published": "adam", "better": "same"}, "adam", "same"),
        ({"published": "adam", "better": "same"}, "sgd", "differs"),
        ({"published": ["a", "b"], "better": "same"}, {"a": 3, "b": 2, "c": 1}, "same"),
        ({"published": ["a", "b"], "better": "same"}, {"b": 3, "a": 2}, "differs"),
        ({"published": 0.5, "better": "none", "note": "other units"}, 7.0, "not comparable"),
        ({}, 7.0, "ours alone"),
        ({"published": 0.5, "better": "lower"}, None, "missing"),
        ({"published": 0.5, "better": "lower"}, float("nan"), "missing"),
    ],
)
def test_verdicts(row: dict[str, Any], ours: Any, verdict: str) -> None:
    assert compared(row, ours).verdict == verdict


def test_what_is_worse_says_what_the_budget_leaves_out() -> None:
    row = {"published": 0.5, "better": "lower", "note": "Another width."}
    assert compared(row, 0.6, less="max epochs 2 instead of 9").why == (
        "Another width. At this budget: max epochs 2 instead of 9."
    )
    assert compared(row, 0.4, less="max epochs 2 instead of 9").why == "Another width."
    assert compared(row, 0.4, problem="no trial is complete").why == "no trial is complete"


# --- doing it ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Reproduction]]:
    """A user's experiment, done once in this process."""
    folder = tmp_path_factory.mktemp("own")
    file = ExperimentFile("mine", folder / "mine.yaml", read_experiment(mine()))
    with without_ray():
        yield folder, reproduce(file, "smoke", Means(folder, tracking_uri="none", said=lambda line: None))


def again(folder: Path, content: dict[str, Any], budget: Budget = "smoke") -> Reproduction:
    file = ExperimentFile("mine", folder / "mine.yaml", read_experiment(content))
    with without_ray():
        return reproduce(file, budget, Means(folder, tracking_uri="none", said=lambda line: None))


def test_an_experiment_of_ones_own(own: tuple[Path, Reproduction]) -> None:
    folder, found = own
    results = write_results(found)
    assert found.complete
    assert [row.verdict for row in results.rows][2:] != ["missing", "missing"]
    test = {trial["config"]["latent_dim"]: trial["mse"] for trial in found.steps["test"].summary["trials"]}
    assert [(row.ours, row.published) for row in results.rows[:2]] == [(test[2], 0.05), (test[4], 0.04)]
    assert results.rows[2].ours == float(test[2] > test[4])
    assert results.rows[3].ours == found.steps["codes"].summary["knn_accuracy"]
    grid, best = found.steps["grid"].summary["best"], found.steps["best"].summary["best"]
    assert best["config"] == {**grid["config"], "lr": 1e-3}, "like takes the best config, and set changes it"
    assert json.loads((found.folder / "rows.json").read_text())["verdicts"]
    assert not list(folder.glob(".check*"))
    assert {path.name for path in folder.iterdir() if path.is_dir()} >= {"reproductions"}


def test_everything_on_the_page_is_escaped(own: tuple[Path, Reproduction]) -> None:
    _, found = own
    rows = compare_rows(found)
    page, table = render_page(found, rows), render_table(found, rows)
    assert "My &lt;b&gt;experiment&lt;/b&gt;" in page
    assert "k-NN &lt;script&gt;" in page
    assert "a &lt;i&gt;map&lt;/i&gt;" in page
    assert not re.search(r"<(b|i|script)>", page)
    assert "http://" not in re.sub(r"data:image/[^\"]*", "", page)
    assert page.count("<img") == 1
    assert r"k-NN \<script\>" in table
    assert r"a \| b" in table
    for line in table.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (6, 9), line


def test_what_is_done_is_not_done_again(own: tuple[Path, Reproduction]) -> None:
    folder, found = own
    before = done_at(found.folder)
    second = again(folder, mine())
    assert all(done.again for done in second.steps.values())
    assert done_at(found.folder) == before
    assert {name: done.summary for name, done in second.steps.items()} == {
        name: done.summary for name, done in found.steps.items()
    }


def test_only_what_changed_is_done_again(own: tuple[Path, Reproduction], tmp_path: Path) -> None:
    first = again(tmp_path, mine())
    content = mine()
    content["steps"]["codes"]["count"] = 60
    second = again(tmp_path, content)
    assert [name for name, done in second.steps.items() if not done.again] == ["codes"]
    (tmp_path / "reproductions" / "mine-smoke" / "steps" / "test" / "step.json").write_text("{")
    content["steps"]["best"]["set"]["lr"] = 2e-3
    third = again(tmp_path, content)
    assert [name for name, done in third.steps.items() if not done.again] == ["best", "test", "codes"]
    assert third.steps["test"].summary == first.steps["test"].summary
    searches = sorted(path.parent.name.rpartition(".")[0] for path in tmp_path.glob("*/study.journal"))
    assert searches == ["mine.best", "mine.best", "mine.grid"]


def test_a_step_that_fails_takes_only_those_with_it_that_need_it(tmp_path: Path) -> None:
    content = mine()
    content["steps"]["best"] = {"do": "train", "family": "conv_autoencoder", "set": {"lr": 10, "optimizer": "sgd"}}
    content["steps"]["best"]["set"] |= {"output": "linear", "batch_size": 4}
    found = again(tmp_path, content)
    assert [name for name, done in found.steps.items() if done.problem] == ["best", "codes"]
    assert "no trial is complete" in found.steps["best"].problem
    rows = compare_rows(found)
    assert rows[3].verdict == "missing"
    assert "best gave nothing" in rows[3].why
    assert "Missing: " in render_page(found, rows)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_lists_what_there_is(tmp_path: Path) -> None:
    listed = read_json(run("reproduce", "--json", cwd=tmp_path).stdout)
    assert [one["name"] for one in listed] == list(REPORTS)
    told = run("reproduce", "guato-2022", cwd=tmp_path, code=2).stderr
    assert "did you mean 'guatto-2022'" in told


def test_the_command_tells_all_that_is_wrong_before_any_work(tmp_path: Path) -> None:
    content = mine(colour="red")
    content["rows"][0]["ours"] = "nowhere[.x"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    told = run("reproduce", "mine.yaml", cwd=tmp_path, code=2).stderr
    assert "colour" in told
    assert "write a path as" in told
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine(data={"source": "mnist", "data_dir": str(tmp_path)})))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    words = ("reproduce", "mine.yaml", "--budget", "smoke", "--tracking-uri", "none")
    folder = tmp_path / "runs" / "reproductions" / "mine-smoke"
    with running(*words, cwd=tmp_path) as command:
        command.wait_until(lambda: (folder / "steps" / "grid" / "step.json").is_file())
        command.kill()
    before = done_at(folder)
    result = read_json(run(*words, "--json", cwd=tmp_path).stdout)
    assert result["steps"]["grid"]["again"]
    assert before.items() <= done_at(folder).items()
    after = done_at(folder)
    assert set(after) == {"grid", "best", "test", "codes"}
    assert read_json(run(*words, "--json", cwd=tmp_path).stdout)["rows"] == result["rows"]
    assert done_at(folder) == after


@pytest.mark.slow
def test_all_five_at_smoke(report: ExperimentFile, tmp_path: Path) -> None:
    with without_ray():
        found = reproduce(report, "smoke", Means(tmp_path, tracking_uri="none", said=lambda line: None))
    assert {name: done.problem for name, done in found.steps.items() if done.problem} == {}
    results = write_results(found)
    missing = [row for row in results.rows if row.verdict == "missing"]
    # Of a model that was hardly trained an analysis may have nothing to say: noise that it never takes away.
    assert [row.row.what for row in missing if not row.why.endswith("is empty")] == []
    page = results.page.read_text()
    assert "Missing: " not in page
    assert page.count("<img") == len(found.experiment.pictures)
    assert results.table.read_text().count("\n| ") >= len(results.rows)
