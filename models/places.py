"""Files and folders by name: on a file system, or in a bucket by a URL such as ``s3://bucket/folder``.

Behind a URL stands universal_pathlib, whose paths are used as pathlib's are; hence both are a ``Path`` here. A bucket
has no folders, locks, free space or partly written files: an object appears whole, in one put.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Kind of URL → our extra that brings its package."""


def is_url(given: object) -> bool:
    """Whether something names a place in a bucket, rather than on a file system."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(given)) is not None


def place(given: str | Path) -> Path:
    """A path, or what is used like one where ``given`` is a URL.

    Raises:
        ValueError: no such kind of URL, or the package for it is not installed; the message says what to do.
    """
    if not is_url(given):
        return Path(given)
    if not isinstance(given, str):
        return given
    kind = given.partition("://")[0]
    if kind in ("file", "local", "memory"):
        raise ValueError("must be a folder, or a URL that other processes reach, such as s3://bucket/folder")
    try:
        from fsspec import get_filesystem_class
        from upath import UPath
    except ImportError as error:
        raise ValueError(f"needs the package universal_pathlib: {_install(kind)}") from error
    try:
        get_filesystem_class(kind)
    except ImportError as error:
        raise ValueError(f"needs another package ({error}): {_install(kind)}") from error
    except ValueError as error:
        raise ValueError("must be a folder, or a URL that fsspec knows, such as s3://bucket/folder") from error
    # Without listings kept: other processes write there too.
    return cast(Path, UPath(given.rstrip("/"), use_listings_cache=False))


def _install(kind: str) -> str:
    return f"pip install 'latentune[{EXTRAS.get(kind, 's3')}]'"


def put(path: Path, content: bytes) -> None:
    """Write an object in a bucket, all of it or nothing."""
    remote = cast(Any, path)
    remote.fs.pipe_file(remote.path, content)


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """The file itself, or for the length of the block a copy of an object, of the same name."""
    if not is_url(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="latentune-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        yield copy
