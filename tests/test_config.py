"""Settings of a search: read, checked all at once, stored and read again, carried on."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models.conv_autoencoder import ConvAutoencoderConfig
from models.errors import Problem, UserError
from models.family import get_family
from models.space import parse_range, ranges_of
from tuning.api import write_yaml
from tuning.config import (
    IDENTITY,
    SearchConfig,
    continued,
    make_config,
    parse_duration,
    read_yaml,
    runs_folder,
    space_of,
    without_password,
)

FAMILY = "conv_autoencoder"
FULL: dict[str, Any] = {
    "family": FAMILY,
    "data": {"source": "digits", "train_images": 200, "val_images": 50, "val_split": "first", "split_seed": 4},
    "set": {"batch_size": 64, "batch_norm": True, "optimizer": "sgd"},
    "space": {
        "latent_dim": "2..10",
        "lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "dropout": "0..0.4:step=0.2",
        "filters": [4, 16],
        "activation": "relu,elu",
    },
    "seed": 7,
    "max_epochs": 4.5,
    "min_epochs": 0.25,
    "reduction_factor": 4,
    "patience": 2,
    "precision": "bfloat16",
    "name": "all.of-it_1",
    "trials": 33,
    "sampler": "random",
    "scheduler": "hyperband",
    "time_budget": "1h30m",
    "report_timeout": 600.0,
    "max_failures": 5,
    "cpus_per_trial": 2,
    "gpus_per_trial": 0.5,
    "max_concurrent": 3,
    "address": "ray://head:10001",
    "tracking_uri": "http://mlflow:5000",
}


def problems_of(given_ones: Any, stored: SearchConfig | None = None) -> dict[str, Problem]:
    with pytest.raises(UserError) as caught:
        make_config(given_ones) if stored is None else continued(stored, given_ones)
    found = {problem.field: problem for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), f"something is told twice: {caught.value}"
    return found


def stored_again(config: SearchConfig) -> SearchConfig:
    """As a study keeps it."""
    return SearchConfig.model_validate(json.loads(json.dumps(config.to_json())))


# --- durations and files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[("90", 90), ("45s", 45), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1d", 86400), ("1d2h3m4s", 93784)],
        *[("1.5h", 5400), ("0.5", 0.5), (" 2H ", 7200), ("0s", 0)],
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "h", "-5", "-5s", "5x", "1h 30m", "1,5h", "1e3", "five", "nan", "inf", "5ss", "1h30"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="90s, 30m, 2h or 1h30m"):
        parse_duration(text)


def test_yaml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text("family: conv_autoencoder\nset: {lr: 0.001}\nspace:\n  latent_dim: 2..10\n")
    content = read_yaml(path)
    assert content == {"family": FAMILY, "set": {"lr": 0.001}, "space": {"latent_dim": "2..10"}}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"family: a\n  trials: 3\n", "line 2"),
        (b"a: [1, 2\nb: 3\n", "line 2"),
        (b"family: {\n", "line 2"),
        (b"a: 1\n\tb: 2\n", "line 2"),
        (b"family: \xff\xfe\n", "not valid YAML"),
        (b"just words\n", "field: value"),
        (b"- family\n- digits\n", "field: value"),
        (b"", "field: value"),
        (b"1: family\n", "field: value"),
        (b"!!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_what_is_no_settings_file(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "search.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("--config", str(path))
    assert told in problem.allowed


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_settings_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / name)


def test_folder_of_searches() -> None:
    assert runs_folder("runs") == Path.cwd() / "runs"
    assert runs_folder("~/runs") == Path.home() / "runs"
    with pytest.raises(UserError, match="--runs-dir: got '~nobody-of-that-name/runs'; must be a folder"):
        runs_folder("~nobody-of-that-name/runs")


# --- making ----------------------------------------------------------------------------------------------------------


def test_every_problem_is_told_at_once() -> None:
    found = problems_of(
        {
            "family": "conv_autoencodr",
            "data": {"train_images": 0, "colour": True},
            "seed": -1,
            "max_epochs": 0,
            "reduction_factor": 1,
            "name": "../evil",
            "trials": 0,
            "sampler": "tpee",
            "scheduler": "ahsa",
            "time_budget": "soon",
            "cpus_per_trial": 0,
            "gpus_per_trial": -1,
            "max_concurrent": 0,
            "precision": "float16",
            "patience": 0,
            "trails": 5,
        }
    )
    assert set(found) == {
        *("family", "data.train_images", "data.colour", "seed", "max_epochs", "reduction_factor", "name", "trials"),
        *("sampler", "scheduler", "time_budget", "cpus_per_trial", "gpus_per_trial", "max_concurrent", "precision"),
        *("patience", "trails"),
    }
    assert found["family"].value == "conv_autoencodr"
    assert "did you mean 'conv_autoencoder'?" in found["family"].allowed
    assert "did you mean 'trials'?" in found["trails"].allowed
    assert found["sampler"].allowed == "did you mean 'tpe'? allowed: tpe, gp, random, grid, qmc"
    assert found["time_budget"].allowed == "a duration such as 90s, 30m, 2h or 1h30m"
    assert found["name"].value == "../evil"
    assert found["seed"].value == -1


def test_problems_of_settings_and_of_the_space_are_told_together() -> None:
    found = problems_of(
        {
            "family": FAMILY,
            "trials": 0,
            "set": {"learning_rate": 1e-3, "filters": 0, "batch_size": 64},
            "space": {"latent_dim": "0..10", "dropout": "0..1.5", "hidden_units": "2...5", "batch_size": "32,64"},
        }
    )
    assert set(found) == {
        *("trials", "set.learning_rate", "set.filters"),
        *("space.latent_dim", "space.dropout", "space.hidden_units", "space.batch_size"),
    }
    assert found["space.latent_dim"].value == 0
    assert "whole number from 1 to 4096" in found["space.latent_dim"].allowed
    assert "lr" in found["set.learning_rate"].allowed


@pytest.mark.parametrize("name", ["a/b", "../a", "..", ".", ".hidden", "a b", "a\n", "-a", "ä", "a" * 101, "a\\b"])
def test_names_that_are_no_folder_names(name: str) -> None:
    found = problems_of({"family": FAMILY, "name": name})
    assert found["name"].value == name
    assert "letters, digits, dot, dash and underscore, at most 100" in found["name"].allowed


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "a" * 100, "0"])
def test_names_that_are_fine(name: str) -> None:
    assert make_config({"family": FAMILY, "name": name}).name == name


def test_lowest_rung_above_the_budget() -> None:
    found = problems_of({"family": FAMILY, "max_epochs": 2, "min_epochs": 3})
    assert found["min_epochs"] == Problem("min_epochs", 3.0, "must be at most max_epochs (2)")
    assert make_config({"family": FAMILY, "max_epochs": 2, "min_epochs": 2}).rungs() == ()


def test_grid_needs_finite_ranges() -> None:
    found = problems_of({"family": FAMILY, "sampler": "grid", "set": {"momentum": 0.9}})
    assert set(found) == {"space.lr", "space.weight_decay"}
    assert "give values (1e-3,1e-2) or a step" in found["space.lr"].allowed
    finite = {"lr": "1e-3,1e-2", "weight_decay": [0.0, 1e-4]}
    fixed = {"momentum": 0.9, "latent_dim": 10, "dropout": 0}
    make_config({"family": FAMILY, "sampler": "grid", "set": fixed, "space": finite})


def test_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError) as caught:
        make_config({"family": FAMILY, "tracking_uri": "https://me:secret@mlflow.example/"})
    assert [problem.field for problem in caught.value.problems] == ["tracking_uri"]
    assert "MLFLOW_TRACKING_PASSWORD" in str(caught.value)
    assert "secret" not in str(caught.value)
    for fine in ("none", "http://mlflow:5000", "https://me@mlflow/", "sqlite:////tmp/a.db", "postgresql://db/mlflow"):
        assert make_config({"family": FAMILY, "tracking_uri": fine}).tracking_uri == fine


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host:5000/path", "https://host:5000/path"),
        ("https://token@host", "https://host"),
        ("postgresql+psycopg://me:se@cret@db/mlflow", "postgresql+psycopg://db/mlflow"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("request to http://a:b@c/api failed, see http://c/docs", "request to http://c/api failed, see http://c/docs"),
        ("none", "none"),
    ],
)
def test_addresses_are_shown_without_passwords(text: str, shown: str) -> None:
    assert without_password(text) == shown


@pytest.mark.parametrize(
    "given_ones",
    [
        {"data": "digits"},
        {"data": None},
        {"set": ["lr"]},
        {"set": "lr=1"},
        {"set": 5},
        {"set": {1: 2}},
        {"set": None},
        {"space": {2: "1..2"}},
        {"space": ["lr"]},
        {"space": [{}]},
        {"fixed": {"lr": 0.1}},
        {"runs_dir": "~nobody-of-that-name/x"},
    ],
)
def test_settings_of_the_wrong_kind(given_ones: dict[str, Any]) -> None:
    (name,) = given_ones
    told = problems_of({"family": FAMILY, **given_ones})
    wanted = "--runs-dir" if name == "runs_dir" else name
    assert all(field.split(".")[0] == wanted for field in told)
    if name != "runs_dir":
        stored = make_config({"family": FAMILY, "name": "a"})
        assert all(field.split(".")[0] == name for field in problems_of(given_ones, stored))


def test_made_config_is_complete_and_absolute() -> None:
    config = make_config({"family": FAMILY, "set": {"batch_size": "64"}, "space": {"latent_dim": "2..10"}})
    own = {name: str(known) for name, known in ranges_of(ConvAutoencoderConfig).items()}
    assert config.space == {**{k: v for k, v in own.items() if k != "batch_size"}, "latent_dim": "2..10"}
    assert config.fixed == {"batch_size": 64}
    assert config.runs_dir == Path.cwd() / "runs"
    again = space_of(config, get_family(FAMILY))
    assert {name: str(known) for name, known in again.ranges.items()} == config.space
    for name, text in config.space.items():
        assert parse_range(ConvAutoencoderConfig, name, text) == again.ranges[name]
    data_dir = make_config({"family": FAMILY, "data": {"data_dir": "here"}}).data.data_dir
    assert data_dir == str(Path.cwd() / "here")


def test_own_family_by_import_path() -> None:
    config = make_config({"family": "benchmarks.do_nothing:DoNothing", "space": {"a": "0.1,0.2"}})
    assert config.space["a"] == "0.1,0.2"
    for name in ("nowhere.to:Be", "os.path:join", "models.family:Family", "models.family:Nope", "nope", ":", "a:", ""):
        found = problems_of({"family": name})
        assert found["family"].value == name


# --- stored and read again -------------------------------------------------------------------------------------------


def test_all_settings_survive_storage(tmp_path: Path) -> None:
    config = make_config({**FULL, "runs_dir": str(tmp_path)})
    left_out = {"study_url"}  # the run folder says where the study is
    assert {name for name in SearchConfig.model_fields if getattr(config, name) is None} == left_out
    assert stored_again(config) == config
    write_yaml(config)
    assert make_config(read_yaml(config.run_dir / "search.yaml")) == config


def test_defaults_survive_storage(tmp_path: Path) -> None:
    config = make_config({"family": FAMILY, "name": "plain", "runs_dir": str(tmp_path)})
    assert stored_again(config) == config
    write_yaml(config)
    content = yaml.safe_load((config.run_dir / "search.yaml").read_text())
    assert None not in content.values(), "what has no value is left out"
    assert make_config(read_yaml(config.run_dir / "search.yaml")) == config
    assert make_config(config.to_json()) == config, "a config is what it was made from"


VALID = st.fixed_dictionaries(
    {"family": st.just(FAMILY)},
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "max_epochs": st.floats(0.01, 100_000),
        "min_epochs": st.floats(0.001, 0.01),
        "reduction_factor": st.integers(2, 16),
        "patience": st.none() | st.integers(1, 9),
        "trials": st.none() | st.integers(1, 10**9),
        "sampler": st.sampled_from(["tpe", "gp", "random", "qmc"]),
        "scheduler": st.sampled_from(["asha", "hyperband", "median", "none"]),
        "time_budget": st.none() | st.floats(1e-3, 1e9) | st.sampled_from(["5s", "1h30m"]),
        "cpus_per_trial": st.floats(0.01, 64),
        "set": st.dictionaries(st.sampled_from(["lr", "momentum", "weight_decay"]), st.floats(1e-6, 0.9)),
        "space": st.fixed_dictionaries(
            {},
            optional={
                "latent_dim": st.tuples(st.integers(1, 50), st.integers(50, 4096)).map(lambda e: f"{e[0]}..{e[1]}:log"),
                "dropout": st.tuples(st.floats(0, 0.4), st.floats(0.4, 0.99)).map(
                    lambda ends: {"low": ends[0], "high": ends[1]}
                ),
                "batch_norm": st.just("true,false"),
                "filters": st.lists(st.integers(1, 256), min_size=1, max_size=5, unique=True),
            },
        ),
    },
)


@given(given_ones=VALID)
@settings(max_examples=60)
def test_any_valid_settings_survive_storage(given_ones: dict[str, Any]) -> None:
    config = make_config(given_ones)
    assert stored_again(config) == config
    as_yaml = yaml.safe_dump({key: value for key, value in config.to_json().items() if value is not None})
    assert make_config(yaml.safe_load(as_yaml)) == config


# --- carried on ------------------------------------------------------------------------------------------------------


def test_what_is_not_given_stays(tmp_path: Path) -> None:
    stored = make_config({**FULL, "runs_dir": str(tmp_path)})
    assert continued(stored, {}) == stored
    assert continued(stored, {"name": stored.name, "runs_dir": str(tmp_path)}) == stored
    same = {key: FULL[key] for key in ("family", "data", "set", "space", "seed", "max_epochs")}
    assert continued(stored, same) == stored, "the same command again"
    assert continued(stored, {"space": {"latent_dim": "2..10"}}) == stored, "a part of a mapping leaves the rest"


def test_means_may_change() -> None:
    stored = make_config(FULL)
    means: dict[str, Any] = {
        "trials": 50,
        "sampler": "tpe",
        "scheduler": "none",
        "time_budget": "5m",
        "cpus_per_trial": 1,
        "gpus_per_trial": 0,
        "max_concurrent": 1,
        "address": "auto",
        "tracking_uri": "none",
        "data": {"data_dir": "/elsewhere"},
    }
    more = continued(stored, means)
    assert (more.trials, more.sampler, more.scheduler, more.time_budget) == (50, "tpe", "none", 300)
    assert (more.tracking_uri, more.data.data_dir) == ("none", "/elsewhere")
    for name in set(IDENTITY) - {"data"}:
        assert getattr(more, name) == getattr(stored, name)
    assert more.data.model_copy(update={"data_dir": None}) == stored.data


def test_every_difference_is_listed() -> None:
    changed = {
        "seed": 8,
        "max_epochs": 5,
        "min_epochs": 0.5,
        "reduction_factor": 3,
        "patience": 3,
        "precision": "float32",
    }
    found = problems_of({"data": {"source": "mnist", "val_images": 60}, **changed}, make_config(FULL))
    assert set(found) == {"data.source", "data.val_images", *changed}
    for problem in found.values():
        assert "'all.of-it_1'" in problem.allowed
        assert "choose another name" in problem.allowed
    assert found["seed"].value == 8
    assert "has 7 there" in found["seed"].allowed


def test_changed_values_and_ranges_are_differences() -> None:
    stored = make_config(FULL)
    found = problems_of({"set": {"batch_size": 128, "hidden_units": 64}, "space": {"latent_dim": "2..11"}}, stored)
    assert set(found) == {"set.batch_size", "set.hidden_units", "space.hidden_units", "space.latent_dim"}
    assert found["set.batch_size"].value == 128
    assert "has 64 there" in found["set.batch_size"].allowed
    assert found["space.latent_dim"].value == "2..11"
    # A field that was held may not be searched now.
    found = problems_of({"space": {"batch_size": "32,64"}}, stored)
    assert set(found) == {"set.batch_size", "space.batch_size"}


def test_another_family_is_a_difference_and_its_fields_are_none() -> None:
    stored = make_config({"family": "benchmarks.do_nothing:DoNothing", "name": "a", "set": {"a": 0.3}})
    found = problems_of({"family": FAMILY, "set": {"lr": 0.1}, "space": {"latent_dim": "2..3"}, "seed": 1}, stored)
    assert set(found) == {"family", "seed"}
    assert found["family"].value == FAMILY
    assert "has 'benchmarks.do_nothing:DoNothing' there" in found["family"].allowed


def test_mistakes_come_before_differences() -> None:
    stored = make_config(FULL)
    found = problems_of({"trials": 0, "set": {"nope": 1}}, stored)
    assert {"trials", "set.nope"} <= set(found)


# --- anything at all -------------------------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.sampled_from(
        ["", "a", "1..2", "..", "1e-3..1:log", "0..1:step=0.1", "x:y", "~nobody-of-that-name", "4,8", "tpe"]
    )
    | st.text(max_size=8)
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted(ConvAutoencoderConfig.model_fields)
SETTINGS = st.fixed_dictionaries(
    {"family": st.just(FAMILY) | ANYTHING.filter(lambda value: not isinstance(value, str) or ":" not in value)},
    optional={
        **{
            name: ANYTHING
            for name in (info.alias or name for name, info in SearchConfig.model_fields.items())
            if name != "family"
        },
        "set": st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=3) | ANYTHING,
        "space": st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=3) | ANYTHING,
        "data": st.dictionaries(st.sampled_from(["source", "train_images", "val_split"]), ANYTHING) | ANYTHING,
        "sampler": st.sampled_from(["grid", "random", "sobol"]),
    },
)


@given(given_ones=SETTINGS | st.dictionaries(st.text(max_size=8) | st.integers(), ANYTHING, max_size=4))
@settings(max_examples=300)
def test_any_settings_give_a_config_or_an_error_for_people(given_ones: dict[str, Any]) -> None:
    with suppress(UserError):
        config = make_config(given_ones)
        assert stored_again(config) == config
        assert space_of(config, get_family(config.family)).fixed == config.fixed


@given(given_ones=SETTINGS)
@settings(max_examples=150)
def test_any_settings_for_a_stored_search_give_a_config_or_an_error_for_people(given_ones: dict[str, Any]) -> None:
    with suppress(UserError):
        config = continued(STORED, given_ones)
        assert all(getattr(config, name) == getattr(STORED, name) for name in set(IDENTITY) - {"data"})


STORED = make_config({"family": FAMILY, "name": "stored", "set": {"lr": 0.01}, "runs_dir": os.sep + "runs"})


def test_grid_beyond_all_measure_is_refused() -> None:
    space = {"lr": "1e-3,1e-2", "weight_decay": "0,1e-5", "momentum": "0,0.9", "latent_dim": "1..4096"}
    with pytest.raises(UserError, match=r"sampler: got 'grid'; a grid of at most 100,000 points"):
        make_config({"family": "conv_autoencoder", "sampler": "grid", "space": space})
