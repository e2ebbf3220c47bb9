"""What a search shows from its first second to its last: in a terminal, in a pipe, to somebody who misspells."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from helpers import COMMAND, PATIENCE_S, run, with_test_families
from studies import DO_NOTHING

WORDS = ("search", DO_NOTHING, "--trials", "3", "--name", "seen", "--tracking-uri", "none", "--set", "a=0.5")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def on_a_terminal(*words: str, cwd: Path, columns: int) -> str:
    """What a terminal of that width is sent by the command, both streams together."""
    master, slave = pty.openpty()
    env = {**with_test_families(), "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
    env.pop("CI", None)
    process = subprocess.Popen(
        [COMMAND, *words], cwd=cwd, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    seen, began = b"", time.monotonic()
    while time.monotonic() - began < PATIENCE_S:
        if select.select([master], [], [], 1.0)[0]:
            try:
                seen += os.read(master, 65536)
            except OSError:  # how Linux says that the other side is gone
                break
    assert process.wait(PATIENCE_S) == 0, seen.decode()
    os.close(master)
    return seen.decode()


@pytest.mark.slow
def test_a_whole_search_on_a_terminal(tmp_path: Path) -> None:
    text = on_a_terminal(*WORDS, "--runs-dir", "elsewhere", cwd=tmp_path, columns=80)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    stages = ("loading", "checking, and reading the images", "starting Ray", "starting workers", "3/3")
    places = [plain.find(stage) for stage in stages]
    assert -1 not in places, dict(zip(stages, places, strict=True))
    assert places == sorted(places)
    assert not re.search("Traceback|Warning|WARN|ray::|Started a local Ray", plain)
    commands = [line.split("#")[0].strip() for line in plain.partition("next:")[2].splitlines() if "#" in line]
    assert len(commands) == 3
    for line in commands:
        name, *words = shlex.split(line)
        assert name.endswith("latentune")
        if "evaluate" not in words:  # a family that does nothing has nothing to evaluate
            run(*words, cwd=tmp_path, env=with_test_families())


def test_a_search_in_a_pipe_gives_plain_lines(tmp_path: Path) -> None:
    """Also where colours are forced, as some CI does."""
    env = {**with_test_families(), "FORCE_COLOR": "1", "TERM": "xterm", "CI": "true"}
    done = run(*WORDS, cwd=tmp_path, env=env)
    lines = done.stderr.splitlines()
    assert not CONTROL.search(re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)), "no cursor is moved, nothing is erased"
    assert lines[0] == "starting Ray"
    assert lines[1].startswith("starting workers, ")
    assert [line.partition("]")[0] for line in lines[2:]] == ["[1/3", "[2/3", "[3/3"]
    assert "next:" in done.stdout.splitlines()
