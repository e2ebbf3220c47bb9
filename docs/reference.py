"""The reference, written from the code: commands, families, data sets, settings, environment, Python.

``docs/site_hooks.py`` makes pages of it. Nothing that the code says is typed again here. What it does not say, such
as what a user sets an environment variable for, fails the build where it is missing.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import typer
from rich.text import Text

import analysis
import tuning
from models.datasets import DATASETS, DataOptions
from models.family import FAMILIES, get_family
from tuning.cli import app
from tuning.config import IDENTITY, SearchConfig
from tuning.report import describe_family

ROOT = Path(__file__).resolve().parent.parent

ENVIRONMENT = {
    "LATENTUNE_RUNS_DIR": "where searches are kept, as `--runs-dir`",
    "LATENTUNE_DATA_DIR": "folder of the data sets' files, as `--data-dir`",
    "LATENTUNE_CACHE_DIR": "what is computed once and kept, such as the network behind the Fréchet distance "
    "(default `~/.cache/latentune`)",
    "LATENTUNE_STUDY_URL": "PostgreSQL database of the studies, with its password, as `--study-url`",
    "LATENTUNE_VENV": "for `docs/cluster/on-premise.yaml`: an environment on a disk that all machines share",
    "LATENTUNE_VERBOSE": "any text: what Ray and MLflow log is shown, and errors with their traceback, as `--verbose`",
    "MLFLOW_TRACKING_URI": "MLflow's server or store, as `--tracking-uri`",
    "MLFLOW_TRACKING_USERNAME": "user of MLflow's server",
    "MLFLOW_TRACKING_PASSWORD": "password of MLflow's server",
    "RAY_ADDRESS": "Ray cluster to run on, as `--address`; Ray sets it in a cluster's jobs",
    "RAY_API_SERVER_ADDRESS": "dashboard that `submit`, `jobs`, `logs` and `stop` talk to, as `--address` there",
    "RAY_AUTH_MODE": "`token` (Ray's default) or `disabled`",
    "RAY_AUTH_TOKEN": "the cluster's token",
    "RAY_AUTH_TOKEN_PATH": "file with the cluster's token (default `~/.ray/auth_token`)",
}
"""Variable → what a user sets it for."""

SAMPLERS = {
    "tpe": "tree-structured Parzen estimator: densities of good and of poor trials, pruned ones included",
    "gp": "Gaussian process; learns from complete trials alone",
    "random": "each trial by itself",
    "grid": "every point once; ranges must be lists or have a step",
    "qmc": "a quasi-random sequence, which covers the space more evenly than random points",
}

SCHEDULERS = {
    "asha": "at each rung, stops a trial that is worse than the best 1/`reduction_factor` of those there before it",
    "hyperband": "the same in several brackets, of which some spare their trials the lower rungs",
    "median": "stops a trial whose best value is worse than the median of the others' values at that epoch",
    "none": "every trial gets its full budget",
}

OWN_DATA = {
    "idx:FOLDER": "MNIST's four IDX files, plain or .gz",
    "images:FOLDER": "`CLASS/*.png`, or `train/CLASS/*.png` and `test/CLASS/*.png`: [your own images](../own-data.md)",
    "mnist-mat:FILE": "a .mat file as MNIST.mat, its images turned and flipped back",
}


def pages() -> dict[str, str]:
    """Path under docs/ → Markdown."""
    made: dict[str, Callable[[], str]] = {
        "commands": commands,
        "families": families,
        "datasets": datasets,
        "settings": settings,
        "environment": environment,
        "python": python,
    }
    return {f"reference/{name}.md": make() for name, make in made.items()}


def commands() -> str:
    parts = [
        "# Commands",
        "Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed, 2 the request cannot "
        "work (told all at once, before any work), 130 and 143 stopped by Ctrl-C and SIGTERM.",
    ]
    group: Any = typer.main.get_command(app)
    own = [_parameter(parameter, bool) for parameter in group.params]
    parts.append(_table(("option of `latentune` itself", "meaning"), [(row[0], row[-1]) for row in own]))
    for name, command in group.commands.items():
        parts += [f"## {name}", _prose(command.help)]
        arguments = [p for p in command.params if not p.opts[0].startswith("-")]
        usage = " ".join([f"latentune {name}", "[OPTIONS]", *map(_argument, arguments)])
        parts.append(f"```text\n{usage}\n```")
        if found := examples(command):
            parts.append("```bash\n" + "\n".join(map(_wrapped, found)) + "\n```")
        kinds = get_type_hints(inspect.unwrap(command.callback))
        rows = [_parameter(p, kinds[p.name]) for p in command.params if p.name in kinds]
        parts.append(_table(("option", "value", "default", "meaning"), rows))
    return _page(parts)


def examples(command: Any) -> list[str]:
    """The commands at the end of a command's help."""
    found = re.findall(r"latentune .*?(?=\s\s+latentune|$)", _plain(command.epilog), re.MULTILINE)
    return [line.strip() for line in found]


def _wrapped(line: str) -> str:
    """A long command over several lines, an option and its value together."""
    kept = re.sub(r"(--\S+) (?!-)", "\\1\N{NO-BREAK SPACE}", line)
    lines = textwrap.wrap(kept, 84, subsequent_indent="    ", break_on_hyphens=False)
    return " \\\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def families() -> str:
    parts = ["# Families", "What each is for and how it is ranked: [families and their objectives](../families.md)."]
    for name in FAMILIES:
        known = describe_family(get_family(name))
        direction = {"min": "lower is better", "max": "higher is better"}[known["mode"]]
        parts += [
            f"## {name}",
            f"{_prose(known['title'][0].upper() + known['title'][1:])}. Ranked by `{known['metric']}`, {direction}. "
            f"Can {', '.join(f'`{one}`' for one in known['capabilities'])}.",
        ]
        rows = []
        for field in known["fields"]:
            when = "; ".join(f"{key} is {' or '.join(map(str, value))}" for key, value in field["when"].items())
            searched = _code(field["searched"]) + (f" when {when}" if when else "")
            rows.append(
                (_code(field["name"]), _code(field["default"]), searched, field["allowed"], _prose(field["help"]))
            )
        parts.append(_table(("field", "default", "searched", "allowed", "meaning"), rows))
    return _page(parts)


def datasets() -> str:
    rows, licences = [], []
    for name, info in DATASETS.items():
        count = f"{info.images:,}" if info.images else "as in the file"
        split = "a fifth" if info.test_images is None else f"{info.test_images:,}"
        files = "in the data folder" if info.needs_files else "embedded"
        files = "downloaded where missing" if info.downloaded else files
        size = f"{info.height}×{info.width}×{info.channels}"
        rows.append((_code(name), count, split, size, f"{info.classes:,}", files))
        licences.append((info.title, re.sub(r"(https?://\S+)", r"<\1>", info.licence)))
    own = [(_code(form), text) for form, text in OWN_DATA.items()]
    parts = [
        *("# Data sets", _table(("data set", "images", "of these test", "size", "classes", "files"), rows)),
        *("## Sources and licences", _table(("data set", "source"), licences)),
        *("## Files of your own", _table(("`--dataset`", "files"), own)),
        *("## Options", "In a search.yaml under `data`; as options with dashes for underscores.", _fields(DataOptions)),
    ]
    return _page(parts)


def settings() -> str:
    kept = ", ".join(_code(SearchConfig.model_fields[name].alias or name) for name in IDENTITY)
    parts = [
        "# Settings of a search",
        "What `--config search.yaml` may hold, and `search()` in Python takes. As options of the command they have "
        f"dashes for underscores. Fixed once a search has begun: {kept}. The others may change each time it goes on.",
        _fields(SearchConfig),
    ]
    for title, field, texts in (("Samplers", "sampler", SAMPLERS), ("Schedulers", "scheduler", SCHEDULERS)):
        known = SearchConfig.model_json_schema()["properties"][field]["enum"]
        assert known == list(texts), f"{field}: {known} are allowed and {list(texts)} explained"
        parts += [
            f"## {title}",
            _table((f"`{field}`", "what it does"), [(_code(name), text) for name, text in texts.items()]),
        ]
    return _page(parts)


def environment() -> str:
    found: set[str] = set()
    for path in [*(p for folder in ("models", "tuning", "analysis") for p in ROOT.glob(f"{folder}/*.py"))]:
        found |= set(re.findall(r"\bLATENTUNE_[A-Z_]+\b", path.read_text()))
    missing = found - set(ENVIRONMENT)
    assert not missing, f"ENVIRONMENT in {Path(__file__).name} does not explain {sorted(missing)}"
    rows = [(_code(name), text) for name, text in ENVIRONMENT.items()]
    return _page(["# Environment", "An option wins over its variable.", _table(("variable", "meaning"), rows)])


def python() -> str:
    parts = ["# Python", "The same engine as the command's. Everything is typed."]
    for package in (tuning, analysis):
        parts.append(f"## {package.__name__}")
        for name in sorted(package.__all__, key=lambda name: (not name[0].islower(), name)):
            parts += _object(name, getattr(package, name))
    return _page(parts)


def _object(name: str, thing: Any) -> list[str]:
    parts = [f"### {name}"]
    if not inspect.isclass(thing):
        parts.append(f"```python\n{_signature(name, thing)}\n```")
    parts.append(_docstring(inspect.getdoc(thing) or ""))
    members = []
    for member, value in vars(thing).items() if inspect.isclass(thing) else ():
        if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            shown = member if isinstance(value, property) else f"{member}()"
            if first := (inspect.getdoc(value) or "").split("\n\n")[0]:
                members.append(f"- `{shown}`: {_prose(first)}")
    return [*parts, "\n".join(members)]


def _signature(name: str, function: Callable[..., Any]) -> str:
    """On one line, or with a line for each parameter."""
    signature = inspect.signature(function)
    text = f"{name}{signature}"
    if len(text) > 88:
        shown = [str(parameter) for parameter in signature.parameters.values()]
        first = next((i for i, p in enumerate(signature.parameters.values()) if p.kind is p.KEYWORD_ONLY), None)
        if first is not None:
            shown.insert(first, "*")
        text = f"{name}(\n    " + ",\n    ".join(shown) + f",\n) -> {signature.return_annotation}"
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # annotations are strings in our modules


def _docstring(text: str) -> str:
    """Google's form as Markdown: each section's entries become a list."""
    made: list[str] = []
    section = ""
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Yields):", line):
            section = line[:-1]
            made += ["", f"**{section}**", ""]
        elif section and line.startswith("    "):
            entry = re.match(r"    (\w[\w, ]*): (.*)", line) if section != "Returns" else None
            if entry:
                made.append(f"- `{entry[1]}`: {_prose(entry[2])}")
            else:
                made.append(("  " if section != "Returns" else "") + _prose(line.strip()))
        else:
            section = section if not line else ""
            made.append(line if line.startswith("    ") else _prose(line))
    return "\n".join(made).replace("::\n", ":\n")


def _fields(model: type[Any]) -> str:
    rows = []
    for name, schema in model.model_json_schema()["properties"].items():
        default = schema.get("default")
        shown = "" if default is None or isinstance(default, dict) else _code(default)
        rows.append((_code(name), _allowed(schema), shown, _prose(schema.get("description", ""))))
    return _table(("field", "value", "default", "meaning"), rows)


def _allowed(schema: dict[str, Any]) -> str:
    """What a field takes, from its JSON schema."""
    (schema,) = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    if "enum" in schema:
        return ", ".join(map(_code, schema["enum"]))
    if "$ref" in schema:
        return "[its fields](datasets.md#options)"
    kind = {"integer": "whole number", "number": "number", "string": "text", "object": "field: value"}
    text = kind.get(schema.get("type", "string"), "text")
    ends = (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below"))
    return " ".join([text, *(f"{word} {schema[key]:,}" for key, word in ends if key in schema)])


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _parameter(parameter: Any, kind: Any) -> tuple[str, str, str, str]:
    """A row: how it is written, what it takes, its default, its help."""
    option = parameter.opts[0].startswith("-")
    names = [*parameter.opts, *parameter.secondary_opts] if option else [_argument(parameter)]
    default = "" if kind is bool or parameter.default is None or parameter.required else _code(parameter.default)
    more = f" (`${parameter.envvar}`)" if parameter.envvar else ""
    return ", ".join(map(_code, names)), _kind(kind) if option else "", default, _prose(parameter.help) + more


def _kind(kind: Any) -> str:
    """What an option takes, from its type."""
    inner = [one for one in get_args(kind) if one is not type(None)] if isinstance(kind, UnionType) else [kind]
    (kind,) = inner
    if get_origin(kind) is list:
        return f"{_kind(get_args(kind)[0])}, may be repeated"
    return {bool: "", int: "whole number", float: "number", Path: "path", str: "text"}[kind]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(value: object) -> str:
    if value is None:
        return "–"
    if value == "":
        return '`""`'
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _plain(text: str | None) -> str:
    return Text.from_markup(text or "").plain


def _prose(text: str | None) -> str:
    """Words of the code as Markdown: its marks for code, and nothing that is taken for HTML."""
    text = _plain(text) if "[/]" in (text or "") else text or ""
    text = re.sub(r"``(.+?)``|:\w+:`~?(.+?)`", lambda m: f"`{m[1] or m[2]}`", text)
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([<*_\[\]])", r"\\\1", p) for p in parts)


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join(parts) + "\n"
