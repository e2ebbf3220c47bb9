"""Published files fetched where they are missing: complete or not at all, and by one process at a time."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from models.data_sources import IDX_FILES, Part, Progress, Setting, find_idx_file, missing_idx_files, reason

_TIMEOUT = 30.0  # seconds without an answer
_LOCK = ".download.lock"
_CHUNK = 1 << 18  # bytes
_MEMBERS = 1024  # of an archive between two reports of progress


def download_idx_files(
    setting: Setting, title: str, torchvision_class: str, folder: Path, part: Part, on_progress: Progress
) -> None:
    """Fetch what ``folder`` lacks of a data set's four IDX files, as ``torchvision_class`` names them.

    Each file appears under its name only when it is complete (md5 sums are torchvision's), so that a process that
    needs no download never finds half a file; the lock is for those that do. Files of the other part are fetched too,
    but may be missing.

    Raises:
        UserError: a file of ``part`` is still missing; says which, where it is published, and why.
    """
    import torchvision.datasets  # slow to import, hence only here
    from filelock import FileLock
    from torchvision.datasets.utils import download_and_extract_archive

    source = getattr(torchvision.datasets, torchvision_class)
    archives: list[tuple[str, str]] = sorted(
        source.resources, key=lambda item: item[0].removesuffix(".gz") not in IDX_FILES[part]
    )
    failures: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / _LOCK), _surroundings_of_torchvision():
            for done, (archive, md5) in enumerate(archives):
                on_progress(f"downloading {title}", done, len(archives))
                name = archive.removesuffix(".gz")
                if find_idx_file(folder, name) is not None:
                    continue
                for mirror in source.mirrors:
                    try:
                        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
                            download_and_extract_archive(
                                mirror + archive, scratch, filename=archive, md5=md5, remove_finished=True
                            )
                            (Path(scratch) / name).replace(folder / name)
                        break
                    except (OSError, RuntimeError, EOFError, http.client.HTTPException, zlib.error) as error:
                        failures.append(f"{mirror}{archive} ({reason(error)})")
                if failures and find_idx_file(folder, name) is None:
                    break  # the next file would fail as slowly
            else:
                on_progress(f"downloading {title}", len(archives), len(archives))
    except OSError as error:
        failures.append(f"cannot write to {error.filename or folder} ({reason(error)})")
    missing = missing_idx_files(folder, part)
    if missing:
        addresses = [mirror + name + ".gz" for name in missing for mirror in source.mirrors]
        raise setting.error(
            f"{title}: missing in {folder}: {', '.join(missing)} (or the same with .gz); "
            f"the download failed: {'; '.join(failures)}; "
            f"get them from {', '.join(addresses)}, or point --data-dir at a folder that has them"
        )


@contextlib.contextmanager
def _surroundings_of_torchvision() -> Iterator[None]:
    """Progress bars on stderr, as stdout is for results, and no waiting for ever: torchvision sets no time limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)


def download_folder(title: str, url: str, target: Path, on_progress: Progress) -> str | None:
    """Fetch the tar archive at ``url`` and put the folder in it that has ``target``'s name at ``target``.

    The folder appears there only when it is complete, in one step. Of the archive, plain files in that folder are
    unpacked and nothing else. A progress bar is shown on stderr.

    Args:
        title: of the data set.
        url: of the archive, packed or not.
        target: a folder that does not exist, or is empty; if it has appeared meanwhile, nothing is done.
        on_progress: told when the download begins and ends, and how many bytes of the archive are unpacked.

    Returns:
        Why there is no such folder now, as a phrase; ``None`` where there is.
    """
    from filelock import FileLock

    archive_name = url.rpartition("/")[2]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(target.parent / _LOCK),
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch,
        ):
            if target.is_dir() and any(target.iterdir()):
                return None
            archive, folder = Path(scratch) / archive_name, Path(scratch) / "content" / target.name
            try:
                on_progress(f"downloading {title}", 0, 1)
                _fetch(url, archive)
                on_progress(f"downloading {title}", 1, 1)
            except (OSError, http.client.HTTPException) as error:
                return f"the download failed: {url} ({reason(error)})"
            try:
                _unpack(archive, folder, f"unpacking {title}", on_progress)
            except (tarfile.TarError, EOFError, zlib.error) as error:
                return f"the download failed: {url} is not the archive that it should be ({reason(error)})"
            if not folder.is_dir():
                return f"the download failed: the archive at {url} has no folder {target.name}"
            folder.replace(target)
    except OSError as error:
        return f"cannot write to {error.filename or target.parent} ({reason(error)})"
    return None


def _fetch(url: str, target: Path) -> None:
    """The content of ``url`` in the new file ``target``, with a progress bar on stderr.

    Raises:
        OSError: no answer, or less than was announced; or the file cannot be written.
        http.client.HTTPException: what answers is not HTTP.
    """
    from rich import progress
    from rich.console import Console

    columns: list[progress.ProgressColumn] = [progress.TextColumn("{task.description}"), progress.BarColumn()]
    columns += [progress.DownloadColumn(), progress.TransferSpeedColumn(), progress.TimeRemainingColumn()]
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT) as response,  # noqa: S310 - an address of ours
        target.open("wb") as file,
        progress.Progress(*columns, console=Console(stderr=True)) as bar,
    ):
        announced: int | None = response.length
        task = bar.add_task(target.name, total=announced)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.advance(task, len(chunk))
    size = target.stat().st_size
    if announced is not None and size != announced:
        raise OSError(f"the connection ended after {size} of {announced} bytes")


def _unpack(archive: Path, target: Path, text: str, on_progress: Progress) -> None:
    """Unpack the plain files of the folder ``target.name`` in a tar archive, so that they lie in ``target``."""
    size = archive.stat().st_size

    def wanted(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        for number, member in enumerate(tar):
            if number % _MEMBERS == 0:
                on_progress(text, archive_file.tell(), size)
            if member.isreg() and PurePosixPath(member.name).parts[:1] == (target.name,):
                yield member

    with archive.open("rb") as archive_file, tarfile.open(fileobj=archive_file) as tar:
        tar.extractall(target.parent, members=wanted(tar), filter="data")
    on_progress(text, size, size)
