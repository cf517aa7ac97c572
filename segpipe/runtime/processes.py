"""Processes of this machine: identifying this one, whether another still runs, finding and ending those of a step."""

import hashlib
import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

HOST, PID, STARTED = "segpipe.host", "segpipe.pid", "segpipe.started"
RUN = "MLFLOW_RUN_ID"
DRIVER = "SEGPIPE_DRIVER"
TICK = 0.05  # seconds between two looks


def here() -> dict[str, str]:
    """The three tags that identify this process among all others."""
    pid = os.getpid()
    return {HOST: host(), PID: str(pid), STARTED: started(pid)}


@cache
def host() -> str:
    """The machine's name; on Linux with a digest of its ID, as two machines may share a name, and the number of the
    namespace of its process IDs, as two containers may.
    """
    namespace, machine = Path("/proc/self/ns/pid"), Path("/etc/machine-id")
    parts = [socket.gethostname()]
    if machine.is_file() and (known := machine.read_bytes().strip()):
        parts.append(hashlib.sha256(known).hexdigest()[:8])
    if namespace.exists():
        parts.append(str(namespace.stat().st_ino))
    return "/".join(parts)


def started(pid: int) -> str:
    """When a process of this machine began, as text without a colon; empty where it is gone, or a zombie.

    On Linux in ticks since the machine was started, whatever its clock says; elsewhere in seconds since 1970.
    """
    try:
        if not sys.platform.startswith("linux"):
            process = psutil.Process(pid)
            return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *rest = stat.rpartition(")")[2].split()
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else rest[18]


def alive(tags: Mapping[str, str]) -> bool | None:
    """Whether the process with these tags is still there; None where that is unknown: it runs, or ran, elsewhere, or
    is hidden from this user.
    """
    if tags.get(HOST) != host():
        return None
    pid = int(tags[PID])
    try:
        now = started(pid)
        if not now:
            os.kill(pid, 0)  # does nothing, but shows whether it is only hidden
    except (PermissionError, psutil.AccessDenied):
        return None
    except ProcessLookupError:
        return False
    return now == tags[STARTED]


def of_run(run_id: str) -> list[psutil.Process]:
    """The topmost Python processes below this one that work for a run of MLflow Projects, without the shell between."""
    found: list[psutil.Process] = []
    inside: set[int] = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if process.ppid() not in inside:
                if not Path(process.exe()).name.startswith("python") or process.environ().get(RUN) != run_id:
                    continue
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        inside.add(process.pid)
    return found


def below() -> list[psutil.Process]:
    """The child processes of this one."""
    return psutil.Process().children()


def driver() -> str:
    """`PID:STARTED` of this process: the variable DRIVER of the steps that it starts."""
    return f"{os.getpid()}:{started(os.getpid())}"


def end(processes: Iterable[psutil.Process], grace: float) -> None:
    """Ask processes to end (SIGTERM), and after `grace` seconds end what is left of them and of all they started."""
    asked = list(processes)
    family = {member for process in asked for member in _family(process)}
    for process in asked:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    until = time.monotonic() + grace
    while any(_at_work(process) for process in family) and time.monotonic() < until:
        time.sleep(TICK)
    for member in family | {member for process in family for member in _family(process)}:
        with suppress(psutil.NoSuchProcess):
            member.kill()


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return [process]


def _at_work(process: psutil.Process) -> bool:
    """Whether a process still runs. psutil's wait() would take a child's exit code from its Popen."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
