"""Draws docs/images/terminal.svg: what a search shows in a terminal, taken from a real one in a pseudo-terminal.

``python docs/terminal_picture.py`` runs the README's first command and keeps what is on the screen when it ends.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

from rich.console import Console
from rich.text import Text

COMMAND = "latentune search conv_autoencoder --dataset digits --trials 12 --name first"
COLUMNS, ROWS = 100, 60
PICTURE = Path(__file__).resolve().parent / "images" / "terminal.svg"


def shown(command: str, folder: Path) -> list[str]:
    """The lines of a terminal after a command, with their colours as escape sequences."""
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    words = [str(Path(sys.executable).with_name("latentune")), *shlex.split(command)[1:]]
    path = os.pathsep.join([str(Path(words[0]).parent), os.environ["PATH"]])
    env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "PATH": path}
    process = subprocess.Popen(  # noqa: S603  our own command
        words, cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    read = b""
    while True:
        try:
            read += os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
    if code := process.wait():
        sys.exit(f"{command}: exit code {code}\n{read.decode()}")
    return screen(read.decode())


def screen(text: str) -> list[str]:
    """What stays of a text that moves up and clears lines, as rich's live views do; whole lines alone."""
    lines, row = [""], 0
    for part in re.findall(
        r"\x1b\[\d*[A-Za-ln-z]|\x1b\[\?\d+[hl]|\r|\n|(?:(?!\x1b\[\d*[A-Za-ln-z]|\x1b\[\?)[^\r\n])+", text
    ):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif up := re.fullmatch(r"\x1b\[(\d*)A", part):
            row = max(0, row - int(up[1] or 1))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part != "\r" and not re.fullmatch(r"\x1b\[(\?\d+|\d*)[A-Za-ln-z]", part):
            lines[row] += part
    return lines


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = shown(COMMAND, Path(folder))
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(f"$ {COMMAND}", style="bold", highlight=False)
    text = re.sub(r"(\s|\x1b\[0m)+$", "", "\n".join(lines)).replace(os.path.realpath(folder), "~").replace(folder, "~")
    console.print(Text.from_ansi(text))
    # Without the fonts that rich would fetch: the picture must not ask a server for anything.
    drawn = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="latentune"), flags=re.DOTALL)
    # A last reset of the colours is drawn as text, which no SVG may hold.
    drawn = re.sub(r"<text [^>]*>\x1b</text><text [^>]*>\[</text><text [^>]*>0m</text>", "", drawn)
    PICTURE.write_text("\n".join(line.rstrip() for line in drawn.splitlines() if line.strip()) + "\n")
    print(f"{PICTURE} ({PICTURE.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
