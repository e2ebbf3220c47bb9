"""Memory that a training step frees stays with the process, for the next step to use."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Numbers of glibc's mallopt(3), as in malloc.h."""

_MIB = 2**20


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed, for the whole process; whether it could be done.

    By default glibc takes each large tensor from the system and gives it back when it is freed, so that every step of
    a small network pays thousands of page faults. Kept are at most 512 MiB more than the process has in use. Has no
    influence on any number. Elsewhere than with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    wanted = ((_MMAP_THRESHOLD, 32 * _MIB), (_TRIM_THRESHOLD, 512 * _MIB), (_TOP_PAD, 64 * _MIB))
    done = [mallopt(option, value) == 1 for option, value in wanted]
    return all(done)
