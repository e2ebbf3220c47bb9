"""What every analysis gives: numbers, tables and pictures, saved in one way."""

from __future__ import annotations

import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from models.checkpoint import write_atomically
from models.places import place

Columns = Mapping[str, Any]
"""A table: column name → a sequence or an array of one dimension, all of the same length."""


class Result(ABC):
    """Base of the results, which are frozen dataclasses of numbers and arrays."""

    name: ClassVar[str]
    """The analysis, as its command is called."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """The numbers that a person would quote, as JSON values; flat where they are worth comparing."""

    def tables(self) -> dict[str, Columns]:
        """File name without ending → table."""
        return {}

    def figures(self) -> dict[str, Figure]:
        """File name without ending → picture, drawn anew at each call."""
        return {}

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write ``<name>.json``, a Parquet file a table, and each picture as PNG and SVG. Folders are made.

        Returns:
            The files, the JSON file first.

        Raises:
            StorageError: a file cannot be written.
        """
        from analysis.figures import save as save_figure

        folder = place(folder)
        paths = [folder / f"{self.name}.json"]
        write_atomically(paths[0], (json.dumps(plain(self.summary()), indent=2) + "\n").encode())
        for stem, columns in self.tables().items():
            paths.append(folder / f"{stem}.parquet")
            write_atomically(paths[-1], _parquet(columns))
        for stem, figure in self.figures().items():
            for suffix in (".png", ".svg"):
                paths.append(folder / f"{stem}{suffix}")
                save_figure(figure, paths[-1])
        return tuple(paths)


def plain(value: Any) -> Any:
    """``value`` as JSON has it: arrays as lists, and ``None`` for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _parquet(columns: Columns) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({name: pyarrow.array(column) for name, column in columns.items()}), buffer
    )
    return buffer.getvalue()
