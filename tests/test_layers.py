"""What may import what, and that everything public says what it does."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    package: sorted(path for path in (ROOT / package).rglob("*.py") if "__pycache__" not in path.parts)
    for package in ("models", "tuning", "analysis")
}
ALL = [path for files in FILES.values() for path in files]

MAY_IMPORT = {
    "ray": {"tuning/jobs.py", "tuning/ray_session.py", "tuning/ray_tune.py", "tuning/trial.py"},
    "mlflow": {"tuning/champion.py", "tuning/champion_model.py", "tuning/mirror.py", "tuning/mlflow_store.py"},
    "optuna": {
        "analysis/anova.py",
        "tuning/database.py",
        "tuning/journal.py",
        "tuning/samplers.py",
        "tuning/store.py",  # for types
        "tuning/study.py",
        "tuning/tpe.py",
    },
    "analysis": {
        "tuning/analysing.py",
        "tuning/analysis_commands.py",
        "tuning/champion_model.py",
        "tuning/pictures.py",
        "tuning/reproduction.py",
        "tuning/reproduction_page.py",
        "tuning/search_page.py",
        "tuning/steps.py",
    },
    "typer": {
        "tuning/analysis_commands.py",
        "tuning/cli.py",
        "tuning/job_commands.py",
        "tuning/options.py",
        "tuning/reproduce_command.py",
        "tuning/search_command.py",
        "tuning/usage.py",
        "tuning/window_commands.py",
    },
    "fsspec": {"models/places.py"},
    "psycopg": {"tuning/database.py"},
    "upath": {"models/places.py"},
    "sqlalchemy": {"tuning/database.py"},
}
"""The files outside of a package that may import it."""

SERVICE = ("ray", "mlflow", "optuna", "tuning")
SLOW = (
    *("torch", "torchvision", "ray", "mlflow", "optuna", "pandas", "matplotlib", "sklearn", "numpy", "pydantic"),
    *("fsspec", "psycopg", "sqlalchemy", "upath"),
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere in it, dots and all; only for types included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: write the package's name"
            yield node.module or ""
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value


def tops(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imports(path)}


def modules_loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after ``code``."""
    show = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_checks_see_imports(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        "import a.b as c\nfrom d.e import f\ndef g():\n    import h\n"
        "if TYPE_CHECKING:\n    from i import j\nimport_module('k.l')\nimportlib.import_module('m')\n"
    )
    assert tops(path) == {"a", "d", "h", "i", "k", "m"}
    assert all(len(files) > 1 for files in FILES.values())


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_only_the_named_files_import(package: str) -> None:
    others = [path for path in ALL if path.relative_to(ROOT).parts[0] != package]
    found = {name_of(path) for path in others if package in tops(path)}
    assert found <= MAY_IMPORT[package], f"{sorted(found - MAY_IMPORT[package])} may not import {package}"
    if package != "analysis":
        assert found == MAY_IMPORT[package], "the table above names files that do not need to be in it"


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = {"models": {"models"}, "analysis": {"models", "analysis"}, "tuning": {"models", "analysis", "tuning"}}
    assert tops(path) & set(FILES) <= allowed[package]
    assert not tops(path) & {"tests", "benchmarks", "helpers", "pytest", "hypothesis"}


@pytest.mark.parametrize("package", ["models", "analysis"])
def test_models_and_analysis_load_nothing_of_the_service(package: str) -> None:
    modules = [module_of(path) for path in FILES[package]]
    # Families and capabilities are imported by name while they are used.
    loaded = modules_loaded_by(
        f"import {', '.join(modules)}\nfrom models.family import FAMILIES, get_family\n"
        "[(get_family(name).capabilities(), get_family(name).Config()) for name in FAMILIES]"
    )
    assert package in loaded
    assert "torch" in loaded, "the check looks at real imports"
    assert loaded & set(SERVICE) == set()


def test_importing_the_service_is_light() -> None:
    loaded = modules_loaded_by("import tuning, tuning.cli")
    assert loaded & set(SLOW) == set()


@pytest.mark.parametrize("words", [["--help"], ["search", "--help"], ["ui", "--help"]])
def test_help_waits_for_nothing(words: list[str]) -> None:
    loaded = modules_loaded_by(
        f"import sys; sys.argv = ['latentune', *{words!r}]\nfrom tuning.cli import run\n"
        "try:\n    run()\nexcept SystemExit as end:\n    assert not end.code"
    )
    assert loaded & {"torch", "ray", "mlflow", "optuna", "pandas", "matplotlib", "sklearn"} == set()


def test_completion_waits_for_nothing() -> None:
    from tuning.choices import PRECISIONS, SAMPLERS, SCHEDULERS
    from tuning.config import SearchConfig

    for name, words in (("sampler", SAMPLERS), ("scheduler", SCHEDULERS), ("precision", PRECISIONS)):
        assert get_args(SearchConfig.model_fields[name].annotation) == words
    loaded = modules_loaded_by(
        "from types import SimpleNamespace as S\nfrom tuning.options import datasets, families, searches\n"
        "assert families('conv') and datasets('digits') and searches(S(params={}), '') is not None"
    )
    assert loaded & {"torch", "ray", "mlflow", "pandas", "matplotlib", "sklearn", "numpy"} == set()


def test_settings_and_results_do_not_load_the_service() -> None:
    loaded = modules_loaded_by("import tuning.config, tuning.results")
    assert loaded & {"ray", "mlflow", "optuna"} == set()


# --- docstrings ------------------------------------------------------------------------------------------------------


def without_docstring(path: Path) -> list[str]:
    """The module and its public functions and classes that say nothing of themselves; empty modules need not."""
    tree = ast.parse(path.read_text())
    silent = [] if ast.get_docstring(tree) or not tree.body else ["the module"]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            silent += [node.name] * (not node.name.startswith("_") and ast.get_docstring(node) is None)
    return silent


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_everything_public_has_a_docstring(path: Path) -> None:
    assert without_docstring(path) == []
