"""What is done with a trained model: each function takes a model and a data set and returns numbers and pictures.

>>> from analysis import evaluate  # doctest: +SKIP
>>> evaluate(result.best.load(), result.config.data).summary()  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.comparison import Candidate, Comparison, compare
    from analysis.embedding import Embedding, embed
    from analysis.evaluation import Evaluation, evaluate
    from analysis.evolution import Evolution, follow
    from analysis.filters import Filters, inspect_filters
    from analysis.finetuning import Finetuning, finetune
    from analysis.generation import Generation, generate
    from analysis.importance import Importance, weigh_parameters
    from analysis.page import Facts, render_report
    from analysis.reconstruction import Reconstruction, reconstruct
    from analysis.result import Result
    from analysis.robustness import Robustness, measure_robustness

_HOME = {
    "Candidate": "analysis.comparison",
    "Comparison": "analysis.comparison",
    "Embedding": "analysis.embedding",
    "Evaluation": "analysis.evaluation",
    "Evolution": "analysis.evolution",
    "Facts": "analysis.page",
    "Filters": "analysis.filters",
    "Finetuning": "analysis.finetuning",
    "Generation": "analysis.generation",
    "Importance": "analysis.importance",
    "Reconstruction": "analysis.reconstruction",
    "Result": "analysis.result",
    "Robustness": "analysis.robustness",
    "compare": "analysis.comparison",
    "embed": "analysis.embedding",
    "evaluate": "analysis.evaluation",
    "finetune": "analysis.finetuning",
    "follow": "analysis.evolution",
    "generate": "analysis.generation",
    "inspect_filters": "analysis.filters",
    "measure_robustness": "analysis.robustness",
    "reconstruct": "analysis.reconstruction",
    "render_report": "analysis.page",
    "weigh_parameters": "analysis.importance",
}

__all__ = [
    "Candidate",
    "Comparison",
    "Embedding",
    "Evaluation",
    "Evolution",
    "Facts",
    "Filters",
    "Finetuning",
    "Generation",
    "Importance",
    "Reconstruction",
    "Result",
    "Robustness",
    "compare",
    "embed",
    "evaluate",
    "finetune",
    "follow",
    "generate",
    "inspect_filters",
    "measure_robustness",
    "reconstruct",
    "render_report",
    "weigh_parameters",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: drawing one picture must not wait for every library of the others.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
