"""Whether libraries may speak: ``--verbose``, kept in the environment so that Ray's workers know it too."""

from __future__ import annotations

import logging
import os

VARIABLE = "LATENTUNE_VERBOSE"


def verbose() -> bool:
    """Whether what Ray and MLflow log is shown, and every error with its traceback."""
    return bool(os.environ.get(VARIABLE))


def be_verbose() -> None:
    """Let them speak from now on."""
    os.environ[VARIABLE] = "1"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for name in ("models", "analysis", "tuning"):
        logging.getLogger(name).setLevel(logging.DEBUG)
