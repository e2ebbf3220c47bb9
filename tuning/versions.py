"""With what a search is made: versions, platform, and the commit of the working directory where it is a repository."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("latentune", "torch", "ray", "optuna", "mlflow")


def versions() -> dict[str, str]:
    """``python``, ``platform``, ``commit`` and each of :data:`PACKAGES`, as far as they are known."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree
            continue
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        found["commit"] = git.stdout.strip()
    except (OSError, subprocess.SubprocessError):  # not in a repository, or no git
        pass
    return found
