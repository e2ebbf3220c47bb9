"""Everything that a search is, in one validated object."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError, field_validator

from models.datasets import DataOptions
from models.errors import Problem, ProblemCollector, UserError, did_you_mean
from models.family import Family, FamilyConfig, get_family
from models.numerics import Numerics
from models.places import is_url, place
from models.space import Space
from models.training import Budget

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

MOST_POINTS = 100_000
"""Of a grid; nobody searches a larger one, and all of it is kept in memory."""

RUNG_IMAGES, FEW_IMAGES = 5000, 1000
"""Training images that a trial has seen at the lowest rung; and at the lower one of two, where there would be one only.

On Fashion-MNIST a rung after 6,700 images sorted trials well and one after 2,200 did not (200 recorded curves), but a
single rung finds worse trials in the same time than one after 1,000 images more does (``benchmarks/README.md``)."""


def _place(given: object) -> Path:
    if not (isinstance(given, str | Path) or is_url(given)):
        raise ValueError("must be a folder, or a URL such as s3://bucket/folder")
    return place(given)  # type: ignore[arg-type]


class SearchConfig(BaseModel):
    """A search: what is searched, how, and with which means.

    The fields in :data:`IDENTITY` say what the search *is*: its trials are comparable only while they stay, so they are
    fixed when the search begins. The others may be changed each time it is continued.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str = Field(description="family name, or your own as package.module:Class")
    data: DataOptions = Field(DataOptions(), description="data set and its split")
    fixed: dict[str, Any] = Field(default_factory=dict, alias="set", description="fields held at a value")
    space: dict[str, Any] = Field(default_factory=dict, description="fields searched over a range of your own")
    seed: int = Field(0, ge=0, lt=2**32, description="decides everything random in the search")
    max_epochs: float = Field(9.0, gt=0, le=100_000, description="full budget of a trial")
    min_epochs: float | None = Field(
        None, ge=0.001, description="lowest rung; may lie inside the first epoch; default by the number of images"
    )
    reduction_factor: int = Field(3, ge=2, le=16, description="η: one trial in η passes a rung")
    patience: int | None = Field(None, ge=1, description="end a trial after so many epochs without improvement")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="forward pass of the networks")

    name: str = Field("", description="names the search and its folder; empty for a fresh one")
    runs_dir: Annotated[Path, PlainValidator(_place), PlainSerializer(str)] = Field(
        Path("runs"), description="where searches are kept: a folder, or a bucket such as s3://bucket/folder"
    )
    trials: int | None = Field(None, ge=1, description="trials in all; default 20, or the whole grid")
    sampler: Literal["tpe", "gp", "random", "grid", "qmc"] = Field("tpe", description="what proposes trials")
    scheduler: Literal["asha", "hyperband", "median", "none"] = Field("asha", description="what stops poor trials")
    time_budget: float | None = Field(None, gt=0, description="seconds after which this run of the search ends")
    cpus_per_trial: float = Field(1.0, gt=0, description="CPU cores a trial; whole cores are its threads")
    gpus_per_trial: float = Field(0.0, ge=0, description="GPUs a trial; a fraction shares one")
    max_concurrent: int | None = Field(None, ge=1, description="trials at a time; default as many as fit")
    max_failures: int = Field(
        3, ge=0, le=1000, description="times that a trial goes on from its checkpoint after its worker died"
    )
    report_timeout: float | None = Field(None, gt=0, description="seconds without a report after which a trial fails")
    address: str | None = Field(None, description="Ray cluster to use; default a Ray of its own on this machine")
    study_url: str | None = Field(
        None,
        exclude=True,  # the run folder says where a study is, whatever it was called this time
        description="PostgreSQL database for the study; default $LATENTUNE_STUDY_URL or a journal in the run folder",
    )
    tracking_uri: str | None = Field(
        None,
        description="MLflow store or server; default $MLFLOW_TRACKING_URI or a file in runs_dir; none for no tracking",
    )

    @field_validator("name")
    @classmethod
    def _safe_name(cls, name: str) -> str:
        if name and not NAME.fullmatch(name):
            raise ValueError("letters, digits, dot, dash and underscore, at most 100, not beginning with a dot")
        return name

    @field_validator("tracking_uri")
    @classmethod
    def _no_password(cls, uri: str | None) -> str | None:
        if uri is not None and has_password(uri):
            raise ValueError(
                "must not hold a password, which would be stored with the search: set MLFLOW_TRACKING_URI, or "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the environment"
            )
        return uri

    @field_validator("study_url")
    @classmethod
    def _usable_study_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if has_password(url):
            raise ValueError(
                "must not hold a password, which everybody on the machine could read: set LATENTUNE_STUDY_URL in the "
                "environment"
            )
        if problem := study_url_problem(url):
            raise ValueError(problem)
        return url

    @field_validator("time_budget", "report_timeout", mode="before")
    @classmethod
    def _seconds(cls, given: object) -> object:
        return parse_duration(given) if isinstance(given, str) else given

    @property
    def run_dir(self) -> Path:
        """The search's folder. Only where ``name`` is set."""
        assert self.name, "a fresh search is named first"
        return self.runs_dir.absolute() / self.name

    @property
    def study_file(self) -> Path:
        """The study, where it is not in a database."""
        return self.run_dir / "study.journal"

    @property
    def mlflow_uri(self) -> str | None:
        """Where the search is tracked, or ``None``; in a bucket there is no room for the database file."""
        if self.tracking_uri == "none":
            return None
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None and not is_url(self.runs_dir):
            uri = f"sqlite:///{self.runs_dir.absolute() / 'mlflow.db'}"
        return uri

    def with_lowest_rung(self, train_images: int) -> SearchConfig:
        """This config with ``min_epochs`` decided: a third of an epoch, or as many as show :data:`RUNG_IMAGES` images.

        A rung that comes after a handful of steps misjudges, and favours small batches. There is always one rung, and
        two where the lower one shows :data:`FEW_IMAGES`.
        """
        if self.min_epochs is not None:
            return self
        enough = RUNG_IMAGES / train_images
        second = self.max_epochs / self.reduction_factor**2
        if second * train_images >= FEW_IMAGES:
            enough = min(enough, second)
        lowest = min(max(1 / 3, enough), self.max_epochs / self.reduction_factor)
        return self.model_copy(update={"min_epochs": max(lowest, 0.001)})

    def rungs(self) -> tuple[float, ...]:
        """Epochs at which trials are compared, lowest first: ``max_epochs / η^k`` down to ``min_epochs``.

        From ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020), counted from the top
        so that a trial's last stretch is always the same part of its budget.
        """
        assert self.min_epochs is not None, "with_lowest_rung() comes first"
        rungs: list[float] = []
        while (epoch := self.max_epochs / self.reduction_factor ** (len(rungs) + 1)) >= self.min_epochs * (1 - 1e-9):
            rungs.append(epoch)
        return tuple(reversed(rungs))

    def budget(self) -> Budget:
        """A trial's budget, reporting at every rung."""
        return Budget(self.max_epochs, self.rungs(), self.patience)

    def numerics(self) -> Numerics:
        """How trials compute; their threads are the whole cores that Ray gives them."""
        device = "cuda" if self.gpus_per_trial else "cpu"
        return Numerics(device, self.precision, threads=max(1, int(self.cpus_per_trial)))

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


IDENTITY = (
    *("family", "data", "fixed", "space", "seed"),
    *("max_epochs", "min_epochs", "reduction_factor", "patience", "precision"),
)


def parse_duration(text: str) -> float:
    """Seconds in ``90``, ``45s``, ``30m``, ``2h``, ``1h30m`` or ``1d``.

    Raises:
        ValueError: not a duration.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    text = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
        raise ValueError("a duration such as 90s, 30m, 2h or 1h30m")
    return sum(float(number) * units[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([smhd])", text))


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a search.yaml.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError.of("--config", str(path), f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1}, column {where.column + 1})" if where else ""
        raise UserError.of(
            "--config", str(path), f"is not valid YAML{line}: {getattr(error, 'problem', error)}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError.of("--config", str(path), "must hold settings as `field: value` lines")
    return content


def make_config(settings: Mapping[str, Any]) -> SearchConfig:
    """A search config from plain settings, with all that is wrong in them told at once.

    The result is complete: ``space`` holds every range that is searched, the family's own too, so that a stored search
    means the same under a later version.

    Raises:
        UserError: fields that are unknown, malformed or out of bounds, an unknown family, ranges outside a field's
            bounds, a grid over endless ranges.
    """
    problems = ProblemCollector()
    config: SearchConfig | None = None
    searched: Space | None = None
    try:
        config = SearchConfig.model_validate(dict(settings))
    except ValidationError as error:
        for problem in UserError.from_validation(error).problems:
            if problem.allowed.startswith("Extra inputs"):
                known = [info.alias or field for field, info in SearchConfig.model_fields.items()]
                problem = Problem(
                    problem.field, problem.value, f"no such setting; {did_you_mean(problem.field, known)}"
                )
            if problem.field in ("tracking_uri", "study_url", "runs_dir"):
                problem = Problem(problem.field, without_password(str(problem.value)), problem.allowed)
            problems.problems.append(problem)
    if config is not None and config.min_epochs is not None and config.min_epochs > config.max_epochs:
        problems.add("min_epochs", config.min_epochs, f"must be at most max_epochs ({config.max_epochs:g})")
    fixed, ranges = settings.get("set") or {}, settings.get("space") or {}
    if isinstance(settings.get("family"), str) and _has_words(fixed) and _has_words(ranges):
        with problems.gather():
            family = get_family(settings["family"])
            searched = Space.of(family.Config, fixed, ranges)
            _try_config(family.Config, searched)
            if settings.get("sampler") == "grid" and _longer_than(searched.grid(), MOST_POINTS):
                allowed = f"a grid of at most {MOST_POINTS:,} points; this one has more, so --set or narrow fields"
                problems.add("sampler", "grid", allowed)
    runs_dir: Path | None = None
    with problems.gather():
        runs_dir = None if config is None else runs_folder(config.runs_dir)
    problems.raise_if_any()
    assert config is not None
    assert searched is not None
    return config.model_copy(
        update={
            "fixed": dict(searched.fixed),
            "space": {name: str(known) for name, known in searched.ranges.items()},
            "runs_dir": runs_dir,
            "data": config.data.model_copy(update={"data_dir": _absolute(config.data.data_dir)}),
        }
    )


def space_of(config: SearchConfig, family: Family[Any]) -> Space:
    """The space that ``config`` searches; its ranges were checked when the config was made."""
    return Space.of(family.Config, config.fixed, config.space)


def continued(stored: SearchConfig, given: Mapping[str, Any]) -> SearchConfig:
    """The stored search with the settings that were given this time; one not given stays as stored.

    Raises:
        UserError: a setting is wrong, or would change what the search is (:data:`IDENTITY`).
    """
    problems = ProblemCollector()
    if given.get("family", stored.family) != stored.family:
        problems.add("family", given["family"], _differs(stored, stored.family))
        # Its fields are not those of the stored family; what else differs is told with it.
        given = {name: value for name, value in given.items() if name not in ("family", "set", "space")}
    settings = stored.to_json()
    for name, value in given.items():
        if isinstance(value, Mapping) and isinstance(settings.get(name), Mapping):
            settings[name] = {**settings[name], **value}
        else:
            settings[name] = value
    if _has_words(settings["set"]) and _has_words(settings["space"]):  # else that is what make_config tells
        for name in given.get("set") or {}:
            settings["space"].pop(name, None)
        for name in given.get("space") or {}:
            settings["set"].pop(name, None)
    wanted = stored
    with problems.gather():
        wanted = make_config(settings)
    for name in IDENTITY:
        old, new = getattr(stored, name), getattr(wanted, name)
        if isinstance(old, DataOptions):
            # Where the files lie may change; that they are the same files is seen by their fingerprint.
            old, new = old.model_dump(exclude={"data_dir"}), new.model_dump(exclude={"data_dir"})
        label = "set" if name == "fixed" else name
        pairs = (
            [(f"{label}.{key}", old.get(key), new.get(key)) for key in sorted({*old, *new})]
            if isinstance(old, dict)
            else [(label, old, new)]
        )
        for label, before, now in pairs:
            if before != now:
                problems.add(label, now, _differs(stored, before))
    problems.raise_if_any()
    return wanted


def _differs(stored: SearchConfig, value: object) -> str:
    has = "nothing" if value is None else repr(value)
    return f"the search {stored.name!r} has {has} there; choose another name for another search"


def _longer_than(items: Iterable[object], most: int) -> bool:
    return sum(1 for _ in islice(items, most + 1)) > most


def _try_config(kind: type[FamilyConfig], space: Space) -> None:
    """The first trial's config, so that rules between fields are told before any work."""
    try:
        kind.model_validate({**space.fixed, **space.default()})
    except ValidationError as error:
        raise UserError.from_validation(error, prefix="set.") from error


def cluster_address(config: SearchConfig) -> str | None:
    """The Ray cluster to use: the one that is named, or that a cluster's job finds in its environment."""
    return config.address or os.environ.get("RAY_ADDRESS") or None


def without_password(text: str) -> str:
    """A text with its addresses, but no user names and passwords in them.

    >>> without_password("no answer from https://me:secret@host/path")
    'no answer from https://host/path'
    """
    text = re.sub(r"([?&][^=&\s]*password=)[^&\s]*", r"\1***", text)
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def has_password(url: str) -> bool:
    """Whether an address holds a password, before the host or among its parameters."""
    return re.search(r"://[^/@]*:[^/@]*@|[?&][^=&]*password=", url) is not None


def study_url_problem(url: str) -> str:
    """Why a study cannot be kept there; empty where it can."""
    if re.match(r"postgres(ql)?://", url):
        return ""
    return "must be PostgreSQL, as postgresql://HOST:PORT/DATABASE; without it the study is a file in the run folder"


def runs_folder(given: str | Path) -> Path:
    """The absolute path of a folder of searches.

    Raises:
        UserError: it begins with the home of a user who does not exist, or is in a bucket that does not answer.
    """
    if has_password(str(given)):
        shown = without_password(str(given))
        raise UserError.of("--runs-dir", shown, "must not hold a password, which would be stored with the search")
    try:
        folder = place(given).expanduser().absolute()
    except RuntimeError as error:
        raise UserError.of("--runs-dir", str(given), "must be a folder: there is no such user") from error
    except ValueError as error:
        raise UserError.of("--runs-dir", str(given), str(error)) from error
    if is_url(folder):
        try:
            folder.exists()
        except Exception as error:  # no credentials, no route: each kind of storage has its own
            told = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError.of("--runs-dir", str(folder), f"cannot be reached: {told}") from error
    return folder


def _has_words(given: object) -> bool:
    """Whether something is a mapping from words, as ``set`` and ``space`` must be."""
    return isinstance(given, Mapping) and all(isinstance(name, str) for name in given)


def _absolute(path: str | None) -> str | None:
    try:
        return None if path is None else str(Path(path).expanduser().absolute())
    except RuntimeError:  # no such user in ~user: told by whoever reads the files
        return path
