"""Ray's cluster launcher against two hosts made on this machine; see two_hosts.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import two_hosts


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_of_ones_own_machines_from_up_to_down() -> None:
    if (lacking := two_hosts.missing()) is not None:
        pytest.skip(lacking)
    with tempfile.TemporaryDirectory(prefix="latentune-", dir="/var/tmp") as folder:  # each host has a /tmp of its own
        two_hosts.walk(Path(folder))
