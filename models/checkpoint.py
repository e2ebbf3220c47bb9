"""Checkpoints: one file of tensors and JSON values that says what it is.

Layout (format version 1), written with ``torch.save`` and read with ``weights_only=True``::

    format    "latentune-checkpoint"
    version   1
    family    name or import path
    config    the family's config, field by field
    data      the DataSpec: shape, class names, fingerprint
    seed      of the trial
    records   every record of the run so far
    record    the best of them
    weights   state dict of the network at the best one
    training  state of the run, only where it is meant to go on
"""

from __future__ import annotations

import io
import os
import pickle
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from models.datasets import DataSpec
from models.errors import CheckpointError, StorageError, UserError
from models.family import FAMILIES, Family, FamilyConfig, Record, get_family
from models.places import is_url, place, put
from models.training import Training

FORMAT = "latentune-checkpoint"
VERSION = 1

UMASK = os.umask(0o077)
"""The process's umask, which the system tells only to who sets it: hence once, before there are threads."""
os.umask(UMASK)


@dataclass(frozen=True)
class Trained:
    """A trained network and what it takes to use it.

    Args:
        network: on the CPU, in evaluation mode.
        record: when in its training these weights were taken, and how good they were.
    """

    family: Family[Any]
    config: FamilyConfig
    spec: DataSpec
    seed: int
    record: Record
    network: nn.Module


def save(path: Path, training: Training, *, family: str, resumable: bool) -> None:
    """Write a run's checkpoint so that a reader sees the old file or the new one, never half of one.

    Args:
        family: the name or import path that the family is known by.
        resumable: keep what is needed to go on; without it the file has a quarter of the size.

    Raises:
        StorageError: the file cannot be written.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "family": family,
        "config": training.config.model_dump(mode="json"),
        "data": training.data.spec.model_dump(mode="json"),
        "seed": training.seed,
        "records": [record.to_json() for record in training.records],
        "record": (training.best or training.records[-1]).to_json(),
        "weights": training.best_weights or training.network.state_dict(),
        "training": training.state_dict() if resumable else None,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at ``path`` in one step, after its content has reached the disk, or the bucket.

    Raises:
        StorageError: the file cannot be written.
    """
    if is_url(path):
        try:
            put(path, content)
        except Exception as error:  # each kind of storage has its own
            raise StorageError(f"cannot write {path}: {_first_line(error)}") from error
        return
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~UMASK)  # as `open` would; mkstemp lets nobody else read
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def read_tensors(path: Path) -> Any:
    """What ``torch.save`` wrote to a file: tensors and plain values, on the CPU.

    Raises:
        Exception: there is no end to what a damaged or foreign file makes zipfile and the unpickler raise.
    """
    raw = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(raw) as archive:
        damaged = archive.testzip()  # torch does not compare the check sums
    if damaged is not None:
        raise zipfile.BadZipFile(f"wrong check sum of {damaged}")
    raw.seek(0)
    return torch.load(raw, map_location="cpu", weights_only=True)


def read(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint file, checked to be one.

    Raises:
        CheckpointError: missing, damaged, foreign, or of a newer format.
    """
    try:
        content = read_tensors(place(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except Exception as error:
        reason = _first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to load it all the same
            reason = "it holds more than tensors and plain values, or is cut off"
        raise CheckpointError(f"{path}: not a latentune checkpoint, or damaged ({reason})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a torch file, but not a latentune checkpoint")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path}: checkpoint format {content.get('version')}; this version reads {VERSION}")
    missing = [
        key for key in ("family", "config", "data", "seed", "records", "record", "weights") if key not in content
    ]
    if missing:
        raise CheckpointError(f"{path}: damaged, without {', '.join(missing)}")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def load(path: str | Path, family: Family[Any] | None = None) -> Trained:
    """The trained network of a checkpoint file.

    Args:
        family: needed for a family of one's own. A file is not allowed to name code that is then imported.

    Raises:
        CheckpointError: the file is not usable.
    """
    content = read(path)
    if family is None:
        if content["family"] not in list(FAMILIES):
            raise CheckpointError(f"{path}: of the family {content['family']!r}, which is not built in; pass family=")
        family = get_family(content["family"])
    try:
        config = family.Config.model_validate(content["config"])
        spec = DataSpec.model_validate(content["data"])
        family.check(config, spec)
        network = family.build(config, spec)
        network.load_state_dict(content["weights"])
        record = Record(**content["record"])
    except (ValidationError, UserError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: does not fit the family {content['family']!r}: {error}") from error
    return Trained(family, config, spec, content["seed"], record, network.eval())
