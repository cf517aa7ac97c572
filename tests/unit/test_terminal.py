"""What a person sees on a terminal of 80 columns, and in a pipe."""

import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from types import SimpleNamespace

import pytest

from segpipe.files.project import PROJECT
from segpipe.orchestration.workers import Reporter

TRAINING = """
import time
from types import SimpleNamespace
from segpipe.orchestration.workers import Reporter
from steps.terminal import Terminal

terminal = Terminal()
terminal.wait("train: starting")
time.sleep(0.3)
reporter = Reporter(terminal)
names = "train_loss", "val_loss", "train_dice", "val_dice", "is_best", "epoch_time_seconds", "images_per_second"
report = dict.fromkeys(names, 1)
for epoch in range(3):
    for batch in range(1, 5):
        time.sleep(0.06)
        reporter.batch(epoch, 3, batch, 4)
    reporter.epoch(SimpleNamespace(epoch=epoch, **report), 3)
terminal.answer("the end")
terminal.close()
"""


def on_a_terminal(program, columns=80):
    """All that a program writes to a terminal."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    done = subprocess.Popen(
        [sys.executable, "-c", program], cwd=PROJECT, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert done.wait() == 0, written.decode()
    return written.decode()


def plain(text):
    """Without what moves the cursor and changes colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_bar_moves_with_batches_below_the_lines_of_finished_epochs():
    written = on_a_terminal(TRAINING)
    shown = plain(written)
    assert "train: starting" in shown
    assert all(f"train epoch {epoch}/3" in shown for epoch in (1, 2, 3))
    assert re.search(r"epoch 2/3, 0:0\d min left .*[1-4]/4", shown)
    places = [shown.index(f"epoch {epoch}/3  loss") for epoch in (1, 2, 3)]
    assert places == sorted(places)
    assert places[0] < shown.index("train epoch 2/3")
    frames = re.split(r"[\r\n]+", shown)
    assert max(map(len, frames)) <= 80
    assert frames[-2].strip() == "the end"
    assert written.rstrip().endswith("the end")
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h")  # the cursor is shown again


def test_in_a_pipe_there_are_lines_alone():
    done = subprocess.run([sys.executable, "-c", TRAINING], cwd=PROJECT, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert done.stdout == "the end\n"


@pytest.mark.parametrize("live", [True, False])
def test_the_time_that_is_left_is_that_of_the_training(live, monkeypatch):
    from segpipe.orchestration import workers

    clock, told = [0.0], []
    monkeypatch.setattr(workers.time, "monotonic", lambda: clock[0])
    screen = SimpleNamespace(
        live=live, progress=lambda _label, timed: lambda *bar: told.append(bar), say=lambda _: None
    )
    reporter = Reporter(screen)
    for batch in (1, 2):
        clock[0] += 100.0
        reporter.batch(0, 10, batch, 10)
    assert told == ([(1, 10, "epoch 1/10"), (2, 10, "epoch 1/10, 2 h 43 min left")] if live else [])
