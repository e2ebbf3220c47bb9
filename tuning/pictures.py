"""Pictures of a search: of one that has ended, in its run folder; small ones of a trial on its way, for MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.figure import Figure

    from models.datasets import TrainingData
    from models.family import Family
    from tuning.results import SearchResult


def draw(result: SearchResult, images: TrainingData) -> list[str]:
    """Write ``history.png``, ``reconstructions.png`` and ``samples.png`` into ``figures/`` in the run folder.

    The second shows ten validation images and the best trial's reconstructions, where its network encodes and decodes;
    the third what it makes up, where it samples.

    Returns:
        What went wrong, one line for each picture that could not be drawn. Nothing is raised: the search has ended
        well, whatever becomes of its pictures.
    """
    warnings = []
    for name, make in (
        ("history.png", _history),
        ("reconstructions.png", _reconstructions),
        ("samples.png", _samples),
    ):
        try:
            figure = make(result, images)
            if figure is not None:
                from analysis.figures import save

                save(figure, result.run_dir / "figures" / name)
        except Exception as error:
            what = str(error).partition("\n")[0] or type(error).__name__
            warnings.append(f"figures/{name} could not be drawn: {what}")
    return warnings


def _history(result: SearchResult, images: TrainingData) -> Figure:
    from analysis.history import compute, plot

    begun = [trial for trial in result.trials if trial.state != "queued"]
    history = compute(
        [trial.number for trial in begun],
        [trial.state for trial in begun],
        [trial.value for trial in begun],
        result.objective.mode,
    )
    return plot(history, result.objective.metric)


def _reconstructions(result: SearchResult, images: TrainingData) -> Figure | None:
    """``None`` where there is no complete trial, or its family does not encode and decode."""
    from analysis.reconstruction import plot_pairs, reconstruct
    from analysis.subject import images_of, subject_of
    from models.family import get_family

    best = result.best
    if best is None or not {"encode", "decode"} <= set(get_family(best.family).capabilities()):
        return None
    title = f"validation images, best trial {best.number}: {result.objective.metric} {best.value:.4g}"
    model = best.load()
    shown = reconstruct(model, images_of(images, subject_of(model), count=10))
    return plot_pairs(shown, shown.examples, title)


def _samples(result: SearchResult, images: TrainingData) -> Figure | None:
    """``None`` where there is no complete trial, or its family does not sample."""
    from analysis.generation import sample_sheet
    from models.family import get_family

    best = result.best
    if best is None or "sample" not in get_family(best.family).capabilities():
        return None
    title = f"samples of the best trial {best.number}: {result.objective.metric} {best.value:.4g}"
    return sample_sheet(best.load(), title)


SNAPSHOT_SIDE, SNAPSHOT_CELL = 4, 56
"""Images on each side of a snapshot, which is square as the place for it in MLflow, and least pixels of each."""


def snapshot(
    checkpoint: Path, family: Family[Any], images: TrainingData
) -> tuple[str, int, npt.NDArray[np.uint8]] | None:
    """A small picture of what the weights in a checkpoint make: of validation images, or of nothing.

    Returns:
        What it shows (``reconstructions``: originals above, or ``samples``), the whole epoch of the weights, and pixels
        uint8 (H, W, 3); ``None`` for a family that makes no images.

    Raises:
        LatentuneError: the checkpoint, or what the network gives, cannot be used.
    """
    import numpy as np

    from analysis.subject import images_of, subject_of
    from models.checkpoint import load

    able = set(family.capabilities())
    if "sample" not in able and not {"encode", "decode"} <= able:
        return None
    model = load(checkpoint, family)
    subject = subject_of(model)
    if {"encode", "decode"} <= able:
        name, shown = "reconstructions", images_of(images, subject, count=SNAPSHOT_SIDE**2 // 2).images
        places = np.zeros((SNAPSHOT_SIDE // 2, 2, SNAPSHOT_SIDE, *shown.shape[1:]), np.float32)  # originals above
        for number, pair in enumerate(zip(shown / np.float32(255), subject.reconstruct(shown), strict=True)):
            row, column = divmod(number, SNAPSHOT_SIDE)
            places[row, :, column] = pair
    else:
        name, places = "samples", subject.sample(SNAPSHOT_SIDE**2)
    cells = places.reshape(SNAPSHOT_SIDE, SNAPSHOT_SIDE, *places.shape[-3:])
    sheet = np.concatenate([np.concatenate(row, axis=2) for row in cells], axis=1)  # (C, rows·H, columns·W)
    pixels = (np.nan_to_num(sheet).clip(0, 1) * 255).round().astype(np.uint8)
    if len(pixels) != 3:
        pixels = np.repeat(pixels[:1], 3, axis=0)
    times = -(-SNAPSHOT_CELL // images.spec.width)
    pixels = pixels.repeat(times, axis=1).repeat(times, axis=2)
    return name, int(model.record.epoch), np.ascontiguousarray(pixels.transpose(1, 2, 0))
