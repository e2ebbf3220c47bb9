"""Images that a model makes up: samples from its prior or its noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from analysis.sheet import plot_sheet
from analysis.subject import Model, subject_of


def sample_sheet(model: Model, title: str, count: int = 64, columns: int = 16, seed: int = 0) -> Figure:
    """A sheet of ``count`` samples; the same for the same ``seed``.

    Raises:
        UserError: the model cannot sample.
    """
    subject = subject_of(model)
    subject.require("generate", "sample")
    images: npt.NDArray[np.float32] = subject.sample(count, seed)
    return plot_sheet(images, columns, title)
