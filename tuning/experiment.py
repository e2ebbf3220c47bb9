"""A published experiment as data: steps that run, and the published numbers and pictures beside what they give.

The file (YAML) is described in docs/reproduce.md. What a step says of itself is its full budget; under ``smoke`` and
``small`` stands what differs at these, and under the file's ``budgets`` what differs for all steps of a kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.errors import Problem, ProblemCollector, UserError, did_you_mean
from tuning.config import NAME, read_yaml
from tuning.paths import Path as ValuePath
from tuning.paths import parse_path

Budget = Literal["smoke", "small", "full"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)

REPORTS = Path(__file__).with_name("reports")
"""Where the experiments are that come with latentune."""

Split = Literal["train", "val", "test"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(_Strict):
    """What all steps have.

    Args:
        data: fields of :class:`models.datasets.DataOptions`, besides those of the file or of the step that this one is
            ``of``; and ``otherwise``, other such fields that are used where the files of ``source`` are missing.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    data: dict[str, Any] = Field(default_factory=dict)

    @property
    def sources(self) -> tuple[str, ...]:
        """The steps whose models or trials this one works on."""
        return ()


class Train(Step):
    """One training of a family: a search of a single trial. Fields that are not ``set`` keep their defaults.

    Args:
        like: a step of the same family, whose best config stands in place of the defaults.
    """

    do: Literal["train"]
    like: str | None = None
    family: str
    fixed: dict[str, Any] = Field(default_factory=dict, alias="set")
    max_epochs: float = Field(9.0, gt=0)
    patience: int | None = Field(None, ge=1)
    trials: Literal[1] = 1
    precision: Literal["float32", "bfloat16"] = "float32"

    @property
    def sources(self) -> tuple[str, ...]:
        return () if self.like is None else (self.like,)


class Search(Step):
    """A search. Only fields in ``space`` are searched; the others are ``set``, or keep their defaults."""

    do: Literal["search"]
    family: str
    fixed: dict[str, Any] = Field(default_factory=dict, alias="set")
    space: dict[str, Any] = Field(min_length=1)
    trials: int | None = Field(None, ge=1)
    max_epochs: float = Field(9.0, gt=0)
    min_epochs: float | None = Field(None, gt=0)
    reduction_factor: int = Field(3, ge=2)
    patience: int | None = Field(None, ge=1)
    sampler: Literal["tpe", "gp", "random", "grid", "qmc"] = "tpe"
    scheduler: Literal["asha", "hyperband", "median", "none"] = "asha"
    precision: Literal["float32", "bfloat16"] = "float32"


class Analysis(Step):
    """Something done with the best trial of a step, or with each of its complete trials."""

    of: str
    trials: Literal["best", "all"] = "best"

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.of,)


class Evaluate(Analysis):
    """The family's metrics on a split."""

    do: Literal["evaluate"]
    split: Split = "test"


class Reconstruct(Analysis):
    """Originals beside reconstructions; with ``epochs``, also as they were after these (trains once more)."""

    needs = ("encode", "decode")
    do: Literal["reconstruct"]
    split: Split = "val"
    count: int = Field(10, ge=1, le=100)
    epochs: list[float] | None = None


class Embed(Analysis):
    """Codes on maps."""

    needs = ("encode",)
    do: Literal["embed"]
    split: Split = "test"
    count: int = Field(10_000, ge=5)
    methods: list[Literal["pca", "tsne", "umap"]] | None = None


class Finetune(Analysis):
    """A classifier on the encoder."""

    needs = ("encode",)
    do: Literal["finetune"]
    head: Literal["linear", "mlp", "cnn"] = "linear"
    frozen: Literal["convs", "encoder", "nothing"] = "nothing"
    epochs: float = Field(12, gt=0)
    patience: int | None = Field(3, ge=1)
    fixed: dict[str, Any] = Field(default_factory=dict, alias="set")
    from_scratch: bool = True


class Generate(Analysis):
    """Images made up."""

    do: Literal["generate"]
    what: list[Literal["samples", "grid", "interpolation", "variations", "nearest"]] | None = None
    split: Split = "val"
    count: int = Field(64, ge=1)


class Robustness(Analysis):
    """Errors under noise and occlusion."""

    do: Literal["robustness"]
    split: Split = "test"
    count: int = Field(2000, ge=1)


class Filters(Analysis):
    """A layer's weights as images, and sparseness."""

    do: Literal["filters"]
    layer: str | None = None
    count: int = Field(400, ge=1)
    threshold: float = Field(0.01, ge=0)
    split: Split = "val"


class Compare(Step):
    """The best trials of several steps side by side, or all complete ones of each."""

    do: Literal["compare"]
    of: list[str] = Field(min_length=1)
    trials: Literal["best", "all"] = "best"
    metric: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self.of)


class Importance(Step):
    """Which parameters of a search mattered, and how it went."""

    do: Literal["importance"]
    of: str
    values: Literal["rung", "complete"] = "rung"

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.of,)


Training = Train | Search
AnyStep = Annotated[
    Train | Search | Evaluate | Reconstruct | Embed | Finetune | Generate | Robustness | Filters | Compare | Importance,
    Field(discriminator="do"),
]
KINDS = tuple(get_args(kind.model_fields["do"].annotation)[0] for kind in get_args(get_args(AnyStep)[0]))

Published = float | str | list[str]


class Row(_Strict):
    """A published number, and how ours is taken from what the steps gave.

    Args:
        id: by which ``order`` of another row names this one.
        what: what it is a number of.
        where: part, table or figure of the report.
        published: a number; words; names, the first one first; or nothing, where ours stands alone.
        published_over: divides ``published``, where a report prints both parts of a ratio.
        ours: path to the value: see :mod:`tuning.paths`.
        over: path to what it is divided by.
        magnitude: without its sign.
        order: instead of ``published`` and ``ours``, ids of numeric rows: the share of their pairs whose published
            numbers differ that stand in the same order here.
        better: which way is better; ``same`` where ours should be equal; ``none`` where the two cannot be compared,
            which ``note`` explains.
        tolerance: differences up to this count as the same; by default 1 % of what is published.
        unit: written behind; ``%`` also multiplies by 100.
        note: where the protocol differs, and why.
    """

    id: str = ""
    what: str
    where: str
    published: Published | None = None
    published_over: float | None = None
    ours: ValuePath | None = None
    over: ValuePath | None = None
    magnitude: bool = False
    order: list[str] = Field(default_factory=list)
    better: Literal["lower", "higher", "same", "none"] = "none"
    tolerance: float | None = Field(None, ge=0)
    unit: Literal["", "%", "s", "×"] = ""
    note: str = ""

    @field_validator("ours", "over", mode="before")
    @classmethod
    def _read_path(cls, given: object) -> object:
        return parse_path(given) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _whole(self) -> Row:
        if self.order:
            if self.ours is not None or self.published is not None:
                raise ValueError("a row with order takes both values from other rows: leave out published and ours")
        elif self.ours is None:
            raise ValueError("must have ours, a path to our value, or order")
        elif self.published is None and self.better != "none":
            raise ValueError(f"better: {self.better} needs a published value to compare with")
        elif self.published is not None and self.better == "none" and not self.note:
            raise ValueError("better: none next to a published value needs a note that says why")
        if isinstance(self.published, str | list) and self.better in ("lower", "higher"):
            raise ValueError("words are compared by better: same")
        return self

    @property
    def number(self) -> float | None:
        """What is published, where it is a number."""
        if not isinstance(self.published, float):
            return None
        return self.published / (self.published_over or 1.0)


class PictureRow(_Strict):
    """A published picture, and which of ours stands for it.

    Args:
        title: what it shows.
        where: part or figure of the report.
        published: the report's picture in words.
        of: a step.
        figure: name of its picture, without ending.
        trial: field → value, of a step with several trials; the first that has them.
    """

    title: str
    where: str
    published: str
    of: str
    figure: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    trial: dict[str, Any] = Field(default_factory=dict)
    note: str = ""


class Experiment(_Strict):
    """One published experiment at one budget.

    Args:
        report: who reported it and what.
        about: what it was, in a few sentences.
        data: fields of :class:`models.datasets.DataOptions` for all steps.
        steps: name → step, in the order in which they run.
    """

    title: str
    report: str
    about: str = ""
    seed: int = Field(0, ge=0, lt=2**32)
    data: dict[str, Any] = Field(default_factory=dict)
    steps: dict[str, AnyStep] = Field(min_length=1)
    rows: list[Row] = Field(default_factory=list)
    pictures: list[PictureRow] = Field(default_factory=list)

    def root_of(self, name: str) -> Training:
        """The training that a step works on, directly or through others."""
        step = self.steps[name]
        while not isinstance(step, Train | Search):
            step = self.steps[step.sources[0]]
        return step

    def data_of(self, name: str) -> dict[str, Any]:
        """A step's data options: the file's, those of what it is of, and its own."""
        step = self.steps[name]
        below = self.data if isinstance(step, Train | Search) else self.data_of(step.sources[0])
        return {**below, **step.data}


@dataclass(frozen=True)
class ExperimentFile:
    """An experiment at each budget."""

    name: str
    path: Path
    at: Mapping[Budget, Experiment]


def shipped() -> dict[str, Path]:
    """Name → file of the experiments that come with latentune."""
    return {path.stem: path for path in sorted(REPORTS.glob("*.yaml"))}


def find_experiment(given: str) -> ExperimentFile:
    """The experiment of that name, or in that file.

    Raises:
        UserError: there is none, or all that is wrong in it.
    """
    known = shipped()
    path = known.get(given) or Path(given)
    if not path.is_file():
        raise UserError.of("REPORT", given, f"{did_you_mean(given, known)}; or the path of a file of your own")
    if not NAME.fullmatch(path.stem):
        raise UserError.of("REPORT", given, "the file's name must be letters, digits, dot, dash and underscore")
    try:
        content = read_yaml(path)
    except UserError as error:
        raise UserError(*(Problem("REPORT", p.value, p.allowed) for p in error.problems)) from error
    return ExperimentFile(path.stem, path, read_experiment(content))


def read_experiment(content: Mapping[str, Any]) -> dict[Budget, Experiment]:
    """The experiment at each budget, from a file's content.

    Raises:
        UserError: all that is wrong at any budget, each thing once.
    """
    found: dict[Budget, Experiment] = {}
    problems: dict[str, Problem] = {}
    for budget in BUDGETS:
        try:
            found[budget] = _checked(at_budget(content, budget))
        except UserError as error:
            problems |= {str(problem): problem for problem in error.problems if str(problem) not in problems}
    if problems:
        raise UserError(*problems.values())
    return found


def at_budget(content: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    """The file's content with what it says of this budget put in its place, and of the others left out.

    Raises:
        UserError: budgets that are none, or settings for kinds of steps that there are not.
    """
    problems = ProblemCollector()
    plain = {key: value for key, value in content.items() if key != "budgets"}
    budgets = content.get("budgets") or {}
    if not isinstance(budgets, Mapping) or not all(isinstance(value, Mapping) for value in budgets.values()):
        raise UserError.of("budgets", budgets, "must hold a mapping for each of smoke, small, full")
    for name in budgets.keys() - set(BUDGETS):
        problems.add("budgets", name, did_you_mean(str(name), BUDGETS))
    for name, general in budgets.items():
        for kind in general.keys() - {*KINDS, "data"}:
            problems.add(f"budgets.{name}", kind, did_you_mean(str(kind), (*KINDS, "data")))
    problems.raise_if_any()
    general = budgets.get(budget, {})
    plain["data"] = _merged(plain.get("data") or {}, general.get("data") or {})
    steps = plain.get("steps")
    if isinstance(steps, Mapping):
        plain["steps"] = {
            name: _step_at(step, general, budget) if isinstance(step, Mapping) else step for name, step in steps.items()
        }
    return plain


def _step_at(step: Mapping[str, Any], general: Mapping[str, Any], budget: Budget) -> Any:
    own = {key: value for key, value in step.items() if key not in BUDGETS}
    return _merged(_merged(own, general.get(str(step.get("do"))) or {}), step.get(budget) or {})


def _merged(below: Any, above: Any) -> Any:
    """``above`` over ``below``, mappings in them too."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {
        **below,
        **{key: _merged(below[key], value) if key in below else value for key, value in above.items()},
    }


def _checked(content: Mapping[str, Any]) -> Experiment:
    try:
        experiment = Experiment.model_validate(content)
    except ValidationError as error:
        raise UserError(*_in_words(error)) from error
    problems = ProblemCollector()
    for field, value, allowed in _inconsistencies(experiment):
        problems.add(field, value, allowed)
    for name, step in experiment.steps.items():
        with problems.gather():
            _check_step(experiment, name, step)
    problems.raise_if_any()
    return experiment


def _in_words(error: ValidationError) -> Iterator[Problem]:
    """As of every config; the kind of a step, which pydantic puts into the place, is left out of it."""
    for item, problem in zip(error.errors(include_url=False), UserError.from_validation(error).problems, strict=True):
        place = [str(part) for part in item["loc"] if part not in ("function-after", "function-before")]
        if place[:1] == ["steps"] and len(place) > 2 and place[2] in KINDS:
            del place[2]
        allowed, value = problem.allowed, problem.value
        if item["type"] == "extra_forbidden":
            allowed = "no such setting here"
        elif item["type"] == "union_tag_invalid":
            place, value = [*place, "do"], item["ctx"]["tag"]
            allowed = did_you_mean(str(value), KINDS)
        elif item["type"] == "union_tag_not_found":
            place, value, allowed = [*place, "do"], None, f"says what the step does: {', '.join(KINDS)}"
        elif isinstance(value, Mapping):
            value = None  # the whole row or step says less than its place
        yield Problem(".".join(place), value, allowed)


def _inconsistencies(experiment: Experiment) -> Iterator[tuple[str, object, str]]:
    """(field, value, allowed) of what only shows where parts of the file meet."""
    seen: list[str] = []
    for name, step in experiment.steps.items():
        if not NAME.fullmatch(name) or "." in name:
            yield f"steps.{name}", name, "a step's name has letters, digits, dash and underscore"
        for source in step.sources:
            if source not in seen:
                yield f"steps.{name}.of", source, f"must name a step above; {did_you_mean(source, seen)}"
            elif not isinstance(experiment.steps[source], Train | Search):
                yield f"steps.{name}.of", source, "must name a train or search step"
            elif isinstance(step, Train) and experiment.root_of(source).family != step.family:
                yield f"steps.{name}.like", source, f"must be of the same family, {step.family}"
            elif isinstance(step, Importance) and not isinstance(experiment.steps[source], Search):
                yield f"steps.{name}.of", source, "must name a search"
        seen.append(name)
    ids = [row.id for row in experiment.rows if row.id]
    numeric = {row.id for row in experiment.rows if row.id and row.number is not None}
    for i, row in enumerate(experiment.rows):
        for path in (row.ours, row.over):
            if path is not None and path.step not in experiment.steps:
                yield f"rows.{i}.ours", str(path), f"begins with a step; {did_you_mean(path.step, experiment.steps)}"
        if row.id and ids.count(row.id) > 1:
            yield f"rows.{i}.id", row.id, "must be another one than those of other rows"
        for other in row.order:
            if other not in numeric:
                yield f"rows.{i}.order", other, f"names a row with a published number; {did_you_mean(other, numeric)}"
    for i, picture in enumerate(experiment.pictures):
        if picture.of not in experiment.steps:
            yield f"pictures.{i}.of", picture.of, did_you_mean(picture.of, experiment.steps)


def _check_step(experiment: Experiment, name: str, step: Step) -> None:
    """That family, fields and data options are right, and that an analysis fits the family.

    Raises:
        UserError: all that is wrong in the step.
    """
    from models.datasets import DataOptions
    from models.family import get_family
    from models.space import Space
    from tuning.config import make_config
    from tuning.steps import settings_of

    problems = ProblemCollector()
    if isinstance(step, Finetune):
        with problems.gather():
            Space.of(get_family("finetuned_classifier").Config, step.fixed)
    if isinstance(step, Train | Search):
        with problems.gather():
            make_config(settings_of(step, {}, experiment.seed))
    elif all(isinstance(experiment.steps.get(source), Train | Search) for source in step.sources):
        for source in step.sources:
            can: tuple[str, ...] = ()
            with problems.gather():
                can = get_family(experiment.root_of(source).family).capabilities()
            if can and not set(step.needs) <= set(can):
                problems.add("of", source, f"must be a model that can {' and '.join(step.needs)}: {', '.join(can)}")
        data = experiment.data_of(name)
        for options in ({k: v for k, v in data.items() if k != "otherwise"}, data.get("otherwise") or {}):
            try:
                DataOptions.model_validate(options)
            except ValidationError as error:
                problems.problems += UserError.from_validation(error, prefix="data.").problems
    if problems.problems:
        raise UserError(*(Problem(f"steps.{name}.{p.field}", p.value, p.allowed) for p in problems.problems))
