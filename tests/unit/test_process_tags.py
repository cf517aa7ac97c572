"""Real processes: which of them are there, which work for a run, and how they end."""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest

from segpipe.runtime import processes

READY = "print('ready', flush=True); "
SLEEP = f"import time; {READY} time.sleep(60)"
STUBBORN = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY} time.sleep(60)"
POLITE = f"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); {READY} time.sleep(60)"


@contextmanager
def started(*command, lines=1, **environment):
    """A process that has written so many lines; it and all it started are gone afterwards."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    try:
        for _ in range(lines):
            assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        for member in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            member.kill()
        process.kill()
        process.communicate()


def tags_of(pid):
    return processes.here() | {processes.PID: str(pid), processes.STARTED: processes.started(pid)}


def soon(condition):
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def gone(pid):
    return not processes.started(pid)


def test_this_process_is_there_and_one_that_began_at_another_time_is_not():
    here = processes.here()
    assert processes.alive(here) is True
    assert processes.alive(here | {processes.STARTED: "1"}) is False
    assert processes.driver() == f"{os.getpid()}:{here[processes.STARTED]}"


def test_of_another_host_nothing_is_known():
    assert processes.alive(processes.here() | {processes.HOST: "elsewhere"}) is None
    assert processes.alive({}) is None


def test_of_a_process_that_is_hidden_from_this_user_nothing_is_known(monkeypatch):
    def hidden(_pid):
        raise PermissionError

    monkeypatch.setattr(processes, "started", hidden)
    assert processes.alive({processes.HOST: processes.host(), processes.PID: "1", processes.STARTED: "1"}) is None


def test_a_process_is_gone_once_it_has_ended_even_before_somebody_asked_for_its_exit_code():
    with started(sys.executable, "-c", SLEEP) as process:
        tags = tags_of(process.pid)
        assert processes.alive(tags) is True
        os.kill(process.pid, signal.SIGKILL)
        assert soon(lambda: processes.alive(tags) is False)
        assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("line", ["{}", "true && {}; true"])
def test_a_runs_process_is_found_with_and_without_a_shell_between(line):
    with started("bash", "-c", line.format(shlex.join([sys.executable, "-c", SLEEP])), MLFLOW_RUN_ID="mine"):
        (found,) = processes.of_run("mine")
        assert found.cmdline()[1] == "-c"
        assert processes.of_run("other") == []


def test_only_the_topmost_process_of_a_run_is_named():
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"
    with started(sys.executable, "-c", program, MLFLOW_RUN_ID="mine") as process:
        assert [found.pid for found in processes.of_run("mine")] == [process.pid]


def test_who_ends_when_asked_keeps_its_exit_code():
    with started(sys.executable, "-c", POLITE) as process:
        processes.end([psutil.Process(process.pid)], 10)
        assert process.wait(0) == 7


def test_who_does_not_end_is_killed_with_all_it_started():
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); {STUBBORN}"
    with started(sys.executable, "-c", program, lines=2) as process:
        (child,) = psutil.Process(process.pid).children()
        began = time.monotonic()
        processes.end([psutil.Process(process.pid)], 0.3)
        assert 0.3 <= time.monotonic() - began < 3
        assert process.wait(5) == -signal.SIGKILL
        assert soon(lambda: gone(child.pid))


def test_who_is_left_by_one_that_ended_is_killed_as_well():
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); {SLEEP}"
    with started(sys.executable, "-c", program, lines=2) as process:
        (child,) = psutil.Process(process.pid).children()
        processes.end([psutil.Process(process.pid)], 0.3)
        assert process.wait(5) == -signal.SIGTERM
        assert soon(lambda: gone(child.pid))


def test_ending_what_is_gone_is_no_error():
    with started(sys.executable, "-c", SLEEP) as process:
        known = psutil.Process(process.pid)
        process.kill()
        process.wait()
        processes.end([known], 0.3)
