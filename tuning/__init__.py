"""The search service: Ray Tune, Optuna and MLflow behind ``search``.

>>> from tuning import search
>>> result = search("conv_autoencoder", dataset="digits", trials=20)  # doctest: +SKIP
>>> model = result.best.load()  # doctest: +SKIP
"""

import logging
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuning.api import list_searches, load_search, search
    from tuning.replaying import Replay, replay
    from tuning.results import SearchResult, Trial

_HOME = {
    "search": "tuning.api",
    "load_search": "tuning.api",
    "list_searches": "tuning.api",
    "replay": "tuning.replaying",
    "Replay": "tuning.replaying",
    "SearchResult": "tuning.results",
    "Trial": "tuning.results",
}

# In a notebook tqdm (which Optuna brings) and Ray ask for ipywidgets while they are imported: nothing here needs them.
warnings.filterwarnings("ignore", message="IProgress not found")
logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)

__all__ = ["Replay", "SearchResult", "Trial", "list_searches", "load_search", "replay", "search"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: `latentune --help` must not wait for torch.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
