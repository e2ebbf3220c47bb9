"""What the command shows: families, data sets, help, progress, MLflow's UI."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers import COMMAND, environment, free_port, running
from rich.console import Console
from studies import DO_NOTHING, METRIC, distance, finish, open_by_hand, record
from typer.testing import CliRunner, Result

from models.datasets import DATASETS
from models.errors import CheckpointError, LatentuneError, UserError
from models.family import FAMILIES, get_family
from models.space import bounds_text, ranges_of
from tuning import api, cli, report
from tuning.api import load_search
from tuning.lock import SearchLockedError
from tuning.progress import Lines, LiveView, NoView, make_progress
from tuning.results import SearchResult, Trial
from tuning.study import SearchStudy
from tuning.waiting import somebody_looks

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

COMMANDS = ("search", "trials", "best", "replay", "families", "datasets", "ui")
MARKUP = "[red]boom[/] of [/] and [bold"


def invoke(*words: str, columns: int = 300) -> Result:
    return CliRunner().invoke(cli.app, list(words), env={"COLUMNS": str(columns), "TERM": "dumb"})


def show(*words: str, columns: int = 300) -> str:
    """What a command prints on stdout where it ends well."""
    done = invoke(*words, columns=columns)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The entry point in this process; gives the exit code."""

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["latentune", *words])
        with pytest.raises(SystemExit) as end:
            cli.run()
        assert isinstance(end.value.code, int)
        return end.value.code

    return call


# --- families and data sets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FAMILIES, DO_NOTHING])
def test_family_as_json_is_its_config(name: str) -> None:
    family = get_family(name)
    told = json.loads(show("families", name, "--json"))
    assert told["name"] == family.name
    assert (told["metric"], told["mode"]) == (family.objective.metric, family.objective.mode)
    assert told["capabilities"] == [
        word for word in ("encode", "decode", "sample", "classify") if hasattr(family.Network, word)
    ]
    ranges, default = ranges_of(family.Config), family.Config()
    assert [field["name"] for field in told["fields"]] == list(family.Config.model_fields)
    for field in told["fields"]:
        name = field["name"]
        assert field["default"] == getattr(default, name)
        assert field["allowed"] == bounds_text(family.Config, name)
        assert field["searched"] == (str(ranges[name]) if name in ranges else None)
        assert field["when"] == ({k: list(v) for k, v in ranges[name].when.items()} if name in ranges else {})
        assert field["help"] == family.Config.model_fields[name].description
        assert field["help"], f"{name} has no line of help"


def test_all_families_are_listed() -> None:
    told = json.loads(show("families", "--json"))
    assert [family["name"] for family in told] == list(FAMILIES)
    assert told[0] == json.loads(show("families", told[0]["name"], "--json"))
    text = show("families")
    for name in FAMILIES:
        assert name in text
        assert get_family(name).title in text
        assert get_family(name).objective.metric in text


@pytest.mark.parametrize("name", [*FAMILIES, DO_NOTHING])
def test_family_as_a_table_shows_every_field(name: str) -> None:
    told = json.loads(show("families", name, "--json"))
    text = show("families", name)
    for field in told["fields"]:
        (line,) = (line for line in text.splitlines() if line.split()[:1] == [field["name"]])
        for part in (str(field["default"]), field["searched"] or "-", field["allowed"], field["help"]):
            assert part in line
        for other in field["when"]:
            assert f"when {other} is" in line
    narrow = show("families", name, columns=60)
    assert all(len(line) <= 60 for line in narrow.splitlines())
    squeezed = "".join(narrow.split())
    assert all(field["name"][:8] in squeezed for field in told["fields"])


def test_unknown_family_is_a_mistake() -> None:
    done = invoke("families", "conv_autoencodr")
    assert isinstance(done.exception, UserError)
    assert "did you mean 'conv_autoencoder'?" in str(done.exception)


def test_data_sets() -> None:
    told = json.loads(show("datasets", "--json"))
    expected = [{"name": name, **asdict(info)} for name, info in DATASETS.items()]
    assert told == json.loads(json.dumps(expected))
    text = show("datasets")
    for name, info in DATASETS.items():
        (line,) = (line for line in text.splitlines() if line.split()[0] == name)
        if info.train_images is not None:
            assert f"{info.train_images} + {info.test_images}" in line
        assert info.licence in line
    for form in ("idx:FOLDER", "images:FOLDER"):
        assert form in text


# --- help and exit codes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["-h"], []])
def test_help_names_every_command(words: list[str]) -> None:
    text = invoke(*words).output
    for name in COMMANDS:
        assert re.search(rf"^\W*{name}\b", text, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name: str) -> None:
    text = show(name, "--help")
    assert "Usage:" in text
    assert "--help" in text


def test_help_of_search_names_every_option() -> None:
    text = show("search", "--help")
    for option in (
        *("dataset", "data-dir", "trials", "max-epochs", "name", "runs-dir", "seed", "sampler", "scheduler", "set"),
        *("space", "config", "time-budget", "cpus-per-trial", "gpus-per-trial", "max-concurrent", "train-images"),
        *("address", "json", "quiet"),
    ):
        assert f"--{option} " in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["serch"], "serch"),
        (["search", "--trails", "3"], "--trails"),
        (["search", "--trials", "three"], "--trials"),
        (["search", "--trials"], "--trials: needs a value"),
        (["trials"], "NAME: must be given: Name of a search."),
        (["replay", "name", "first"], "TRIAL: got 'first'; must be a whole number"),
        (["best", "a", "b"], "unexpected extra argument"),
        (["ui", "--port", "0"], "--port: got '0'; must be greater than or equal to 1"),
        (["search"], "FAMILY"),
    ],
)
def test_words_that_make_no_command(
    words: list[str], told: str, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words) == 2
    seen = capsys.readouterr()
    assert told in seen.err
    assert seen.out == ""
    assert "Traceback" not in seen.err


@pytest.mark.parametrize("words", [["--version"], ["families"], ["families", "--json"]])
def test_output_on_a_full_disk(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        told = subprocess.run([COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert told.returncode == 1
    assert told.stderr == "error: the output cannot be written: no space left on the device\n"


def test_version(capsys: pytest.CaptureFixture[str], call: Callable[..., int]) -> None:
    assert call("--version") == 0
    assert re.fullmatch(r"latentune \d+\.\d+\.\d+\n", capsys.readouterr().out)


def completed(*words: str, cwd: Path) -> list[str]:
    """What bash offers after these words, by the installed command."""
    env = environment(
        _LATENTUNE_COMPLETE="complete_bash", COMP_WORDS=" ".join(["latentune", *words]), COMP_CWORD=str(len(words))
    )
    done = subprocess.run([COMMAND], cwd=cwd, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_completion(tmp_path: Path) -> None:
    open_by_hand(tmp_path, name="one")
    (tmp_path / "no-search").mkdir()
    assert completed("search", "conv", cwd=tmp_path) == ["conv_autoencoder"]
    assert completed("families", "", cwd=tmp_path) == list(FAMILIES)
    assert completed("search", "--dataset", "fa", cwd=tmp_path) == ["fashion-mnist"]
    assert completed("search", "--sampler", "g", cwd=tmp_path) == ["gp", "grid"]
    assert completed("embed", "x", "--split", "", cwd=tmp_path) == ["train", "val", "test"]
    assert completed("best", "--runs-dir", str(tmp_path), "", cwd=tmp_path) == ["one"]
    assert completed("finetu", cwd=tmp_path) == ["finetune"]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError.of("lr", -1, "must be above 0 [/]"), 2, "cannot do that:\n  lr: got -1; must be above 0 [/]\n"),
        (LatentuneError("no [bold]luck[/]"), 1, "error: no [bold]luck[/]\n"),
        (SearchLockedError("the search 'a' is already running"), 2, "error: the search 'a' is already running\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_for_people_become_a_message_and_a_code(
    error: BaseException,
    code: int,
    told: str,
    call: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*given: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(api, "load_search", fail)
    assert call("trials", "it") == code
    assert capsys.readouterr() == ("", told)


def test_errors_of_our_own_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["latentune", "trials", "it"])
    monkeypatch.setattr(api, "load_search", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.run()


# --- results as tables -----------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path: Path) -> SearchStudy:
    """Two complete trials, a stopped one, a failed one and one that is running."""
    study = open_by_hand(tmp_path, trials=6)
    for _ in range(5):
        assert study.propose() is not None
    finish(study, study.trials[0])
    finish(study, study.trials[1])
    study.report(2, record(1.0, 0.75))
    study.prune(2, "rung 1: 0.75 is above 0.2, the best 1/3 of 2")
    study.report(3, record(1.0, 0.5))
    study.fail(3, f"RuntimeError: {MARKUP}")
    study.report(4, record(1.0, 0.625))
    return study


@pytest.fixture
def result(study: SearchStudy) -> SearchResult:
    return load_search("by-hand", study.config.runs_dir)


def odd(result: SearchResult) -> SearchResult:
    """The same with a value that looks like rich's markup."""
    return replace(
        result,
        trials=tuple(
            replace(trial, params={**trial.params, "kind": "[/]"}, config={**trial.config, "kind": "[/]"})
            for trial in result.trials
        ),
    )


def printed(
    monkeypatch: pytest.MonkeyPatch, show: Callable[[SearchResult], None], result: SearchResult, width: int = 200
) -> str:
    stream, real = io.StringIO(), report._console()
    made = Console(file=stream, width=width, markup=real._markup)
    monkeypatch.setattr(report, "_console", lambda: made)
    show(result)
    return stream.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_tables_show_markup_as_it_is(result: SearchResult, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    for what in (report.print_trials, report.print_best, report.print_result):
        text = printed(monkeypatch, what, odd(result), width)
        assert "[/]" in "".join(text.split())
    text = printed(monkeypatch, report.print_trials, result, 300)
    assert f"RuntimeError: {MARKUP}" in text


def test_trials_as_a_table_and_as_json(result: SearchResult, study: SearchStudy) -> None:
    runs = ("--runs-dir", str(study.config.runs_dir))
    lines = show("trials", "by-hand", *runs).splitlines()
    assert lines[0].split() == ["trial", "state", METRIC, "epochs", "seconds", "a", "b", "c", "d"]
    assert lines.pop() == f"trial 3 failed: RuntimeError: {MARKUP}"
    assert [line.split()[:2] for line in lines[1:]] == [
        *[["0", "complete"], ["1", "complete"], ["2", "pruned"], ["3", "failed"], ["4", "interrupted"]],
    ]
    assert f"{distance(result.trials[0]):.4g}" in lines[1]
    told = json.loads(show("trials", "by-hand", *runs, "--json"))
    assert [set(trial) for trial in told] == [
        {"number", "state", "value", "epochs", "config", "started_s", "finished_s", "curve", "reason"}
    ] * 5
    assert [trial["value"] for trial in told[2:]] == [0.75, 0.5, 0.625]
    assert [point[:2] for point in told[4]["curve"]] == [[1.0, 0.625]]
    assert told[3]["reason"] == f"RuntimeError: {MARKUP}"
    assert told[4]["finished_s"] is None


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_trial_takes_one_line(result: SearchResult, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Whatever the width: what finds no room is named below."""
    params = {
        **{"batch_size": 128, "optimizer": "adamw", "lr": 0.00312345, "weight_decay": 8.9321e-05, "filters": 16},
        **{"hidden_units": 256, "latent_dim": 12, "activation": "leaky_relu", "batch_norm": True, "dropout": 0.45},
    }
    other = dict.fromkeys(params, 0)
    trials = tuple(replace(trial, params=params if trial.number % 2 else other) for trial in result.trials)
    text = printed(monkeypatch, report.print_trials, replace(result, trials=trials), width)
    head, *lines = text.splitlines()[: 1 + len(trials)]
    assert all(len(line) <= width for line in (head, *lines))
    assert [int(line.split()[0]) for line in lines] == list(range(len(trials)))
    assert ("0.00312" in lines[1]) == ("lr" in head.split())
    rest = text.splitlines()[1 + len(trials) :]
    assert rest[-1] == f"trial 3 failed: RuntimeError: {MARKUP}"
    left_out = rest[0].removeprefix("no room for ").partition(":")[0].split(", ") if len(rest) > 1 else []
    assert len(head.split()) == 4 + len(params) - len(left_out) + ("seconds" in head)
    assert bool(left_out) == (width < 140)
    assert set(left_out) < set(params)


def test_the_end_of_a_search_tells_what_to_do_next(result: SearchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    config = result.config.model_copy(update={"tracking_uri": None})
    tracked = replace(result, config=config, mlflow_run={"run_id": "it"})
    text = printed(monkeypatch, report.print_result, tracked, 80)
    best = result.best
    assert best is not None
    assert f"best config: {' '.join(f'{name}={value}' for name, value in best.params.items())}" in text
    assert f"trial 3 failed: RuntimeError: {MARKUP}" in text
    told = [line.split("#")[0].strip() for line in text.partition("next:\n")[2].splitlines()]
    where = f"by-hand --runs-dir {result.config.runs_dir}"
    assert told == [f"latentune best {where}", f"latentune evaluate {where}", f"latentune ui {where}"]
    stopped = printed(monkeypatch, report.print_result, replace(tracked, outcome="interrupted"), 80)
    assert f"latentune search {DO_NOTHING} --name {where}  # go on with it" in " ".join(stopped.split(" "))


def test_best_and_its_export(result: SearchResult, study: SearchStudy, tmp_path: Path) -> None:
    runs = ("--runs-dir", str(study.config.runs_dir))
    best = min(result.trials[:2], key=distance)
    text = show("best", "by-hand", *runs)
    assert f"{best.number} of by-hand" in text
    assert "lower is better" in text
    told = json.loads(show("best", "by-hand", *runs, "--json"))
    assert (told["number"], told["value"], told["config"]) == (best.number, best.value, best.config)
    assert told["checkpoint"] is None, "nobody trained it here"
    copy = tmp_path / "best.pt"
    done = invoke("best", "by-hand", *runs, "--export", str(copy))
    assert isinstance(done.exception, CheckpointError)
    assert f"the checkpoint of trial {best.number} in {study.config.run_dir} is gone" in str(done.exception)
    checkpoint = study.checkpoint_path(best.number)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    assert json.loads(show("best", "by-hand", *runs, "--json"))["checkpoint"] == str(checkpoint)
    assert str(checkpoint) in show("best", "by-hand", *runs, "--export", str(copy))
    assert copy.read_bytes() == b"weights"
    assert mistake("best", "by-hand", *runs, "--export", str(copy)).endswith("exists already; name a new file")
    assert "cannot be written" in mistake("best", "by-hand", *runs, "--export", str(tmp_path / "no" / "best.pt"))
    open_by_hand(tmp_path, name="empty")
    done = invoke("best", "empty", *runs)
    assert isinstance(done.exception, LatentuneError)
    assert "no complete trial yet (0 trials so far)" in str(done.exception)


def test_commands_that_are_printed_can_be_typed(result: SearchResult, tmp_path: Path) -> None:
    line = report.continue_command(replace(result, outcome="time budget").config)
    assert line == f"latentune search {DO_NOTHING} --name by-hand --runs-dir {result.config.runs_dir}"
    odd_place = result.config.model_copy(update={"runs_dir": tmp_path / "my runs"})
    assert report.continue_command(odd_place).endswith(f"--runs-dir '{tmp_path}/my runs'")


# --- progress --------------------------------------------------------------------------------------------------------


def drive(study: SearchStudy, tell: Callable[[Trial], None]) -> None:
    """A search with trials of every kind, each change told."""

    def begin() -> int:
        trial = study.propose()
        assert trial is not None
        tell(study.trials[trial.number])
        return trial.number

    for value, how, reason in (
        (0.5, "complete", ()),
        (0.9, "prune", ("rung 1: 0.9 is above 0.5, the best 1/3 of 1",)),
        (None, "fail", (f"RuntimeError: {MARKUP}",)),
        (0.25, "complete", ()),
        (0.3, "complete", ()),
    ):
        number = begin()
        if value is not None:
            study.report(number, record(1.0, value))
            tell(study.trials[number])
        getattr(study, how)(number, *reason)
        tell(study.trials[number])
    begin()


def test_one_line_for_every_trial_that_ends(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path, trials=12)
    stream = io.StringIO()
    with (view := Lines(study, Console(file=stream, width=60))):
        drive(study, view.trial_changed)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5, "not broken by a narrow terminal"
    assert re.fullmatch(
        rf"\[ 1/12\] trial 0 complete {METRIC} 0\.5 after 1 epochs, \d+\.\d s: a 0\.5, b 0\.5, c 0\.5, d 0\.5  <- best",
        lines[0],
    )
    assert lines[1].startswith("[ 2/12] trial 1 pruned")
    assert lines[2].startswith("[ 3/12] trial 2 failed after 0 epochs")
    assert lines[2].endswith(f"RuntimeError: {MARKUP}")
    assert [line.endswith("<- best") for line in lines] == [True, False, False, True, False]
    again = io.StringIO()
    with (view := Lines(study, Console(file=again, width=60))):
        finish(study, study.trials[5], [0.4])
        view.trial_changed(study.trials[5])
    assert again.getvalue().startswith("[ 6/12] trial 5 complete"), "a search that goes on counts from where it was"
    assert "<- best" not in again.getvalue()


@pytest.mark.parametrize("width", [20, 80, 140])
def test_live_view(tmp_path: Path, width: int) -> None:
    study = open_by_hand(tmp_path, trials=12)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, height=40, color_system="truecolor")
    frames = []
    with (view := LiveView(study, console)):

        def tell(trial: Trial) -> None:
            view.trial_changed(trial)
            with console.capture() as capture:
                console.print(view._draw())
            frames.append(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capture.get()))

        drive(study, tell)
    assert all(len(line) <= width for frame in frames for line in frame.splitlines())
    if width == 20:
        return  # enough that nothing breaks
    assert "by-hand" in frames[0]
    assert "0/12" in frames[0]
    assert "trial 0" in frames[0]
    last = frames[-1]
    assert "5/12" in last
    for word in ("3 complete", "1 pruned", "1 failed", f"best {METRIC} 0.25  trial 3", "trial 5", "0/3"):
        assert word in last
    assert "trial 2" not in last, "what has ended does not run"
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert MARKUP in text, "a failure stays above the view, its words as they are"


def test_stages_until_the_first_report(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path, trials=3)
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    view = LiveView(study, console)

    def drawn() -> str:
        with console.capture() as capture:
            console.print(view._draw())
        return capture.get()

    view.stage("starting Ray")
    assert "starting Ray" in drawn()
    assert study.propose() is not None
    view.trial_changed(study.trials[0])
    assert "starting Ray" in drawn(), "it waits for its worker"
    study.report(0, record(1.0, 0.5))
    view.trial_changed(study.trials[0])
    assert "starting Ray" not in drawn()
    assert "trial 0" in drawn()


@pytest.mark.parametrize(
    ("terminal", "settings", "looks"),
    [
        (True, {"TERM": "xterm-256color"}, True),
        (True, {"TERM": "xterm-256color", "NO_COLOR": "1", "CI": "false"}, True),
        (True, {"TERM": "dumb"}, False),
        (True, {"TERM": "xterm", "CI": "true"}, False),
        (False, {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
    ],
)
def test_whether_somebody_looks(
    terminal: bool, settings: dict[str, str], looks: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert somebody_looks() == looks
    assert isinstance(make_progress("auto", open_by_hand(tmp_path)), LiveView if looks else Lines)


def test_view_that_was_asked_for(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    assert isinstance(make_progress("none", study), NoView)
    assert isinstance(make_progress("lines", study), Lines)
    assert isinstance(make_progress("live", study), LiveView)
    assert isinstance(make_progress("auto", study), Lines), "stderr is no terminal here"
    with pytest.raises(UserError, match="allowed: auto, live, lines, none"):
        make_progress("loud", study)


# --- MLflow's UI -----------------------------------------------------------------------------------------------------


@pytest.fixture
def taken_port() -> Iterator[int]:
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


def mistake(*words: str) -> str:
    done = invoke(*words)
    assert isinstance(done.exception, UserError)
    return str(done.exception)


def test_ui_without_anything_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    told = mistake("ui", "--runs-dir", str(tmp_path / "nothing"))
    assert told == f"--runs-dir: got '{tmp_path}/nothing'; holds no tracked searches (no mlflow.db)"
    assert not (tmp_path / "nothing").exists()


def test_ui_on_a_port_that_is_taken(tmp_path: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").touch()
    told = mistake("ui", "--runs-dir", str(tmp_path), "--port", str(taken_port))
    assert told.startswith(f"--port: got {taken_port}; cannot listen on 127.0.0.1:")
    assert "choose another" in told


def test_ui_of_a_server_names_it_without_its_password(
    call: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example/path")
    assert call("ui") == 0
    assert capsys.readouterr() == ("", "the searches are on a server already: https://mlflow.example/path\n")


def test_ui_of_a_server_that_cannot_start(
    tmp_path: Path, call: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    (tmp_path / "mlflow.db").touch()
    assert call("ui", "--runs-dir", str(tmp_path), "--port", str(free_port())) == 1
    assert capsys.readouterr().err.startswith("error: the MLflow server ended at once: 1")


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    return [int(word) for task in tasks.iterdir() for word in (task / "children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ui_shows_the_searches_until_it_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    from mlflow import MlflowClient

    (tmp_path / "runs").mkdir()
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    client.create_experiment("ours on digits")
    port = free_port()
    with running("ui", "--port", str(port), cwd=tmp_path) as command:
        command.wait_until(lambda: f"MLflow UI: http://127.0.0.1:{port}" in command.stderr)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as answer:
            assert answer.status == 200
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search",
            data=json.dumps({"max_results": 10}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=20) as answer:
            assert "ours on digits" in {found["name"] for found in json.load(answer)["experiments"]}
        started = children_of(command.pid)
        assert started
        command.send(number)
        done = command.finish()
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert not any(map(alive, started)), "the server is left behind"


def test_installed_command_is_this_one() -> None:
    done = subprocess.run([str(COMMAND), "families", "--json"], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(show("families", "--json"))
