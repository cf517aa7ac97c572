"""How a step is run: as a process of MLflow Projects, on another machine, or in this process; for how long, how often,
and what becomes of it when the driver is asked to stop.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from segpipe.errors import InputError, StepError, one_line
from segpipe.files import project
from segpipe.orchestration import backends, step_log
from segpipe.orchestration.session import Session
from segpipe.runtime import processes
from segpipe.runtime.signals import Guard, Interrupted
from segpipe.tracking import artifacts, connection, mlflow_sentences, run_tags, runs

if TYPE_CHECKING:
    from mlflow.entities import Run

GRACE = 8.0  # seconds that a step has to end when it is asked to
PAUSE = 5.0  # seconds before a step is tried again
ATTEMPT = "segpipe.attempt"
SILENT = "its process ended without a word (killed, or out of memory)"

Perform = Callable[[str, list[str], Session], None]


@dataclass(frozen=True)
class How:
    """How steps are run: the environment and backend of MLflow Projects, or in this process, by a function that takes a
    step's name and arguments; by step, how many seconds it may take and how often it is tried again.
    """

    env_manager: str = "local"
    backend: str = "local"
    backend_config: str = ""
    in_process: Perform | None = None
    timeout: Mapping[str, float] = field(default_factory=dict)
    retries: Mapping[str, int] = field(default_factory=dict)

    def checked(self) -> "How":
        """Itself, if it can be done. Raises InputError for a backend that is unknown or lacks something, and for what
        does not go together.
        """
        if self.in_process and (self.backend, self.env_manager) != ("local", "local"):
            raise InputError("--in-process uses this environment; leave out --backend and --env-manager")
        if "#" in str(project.PROJECT) and not self.in_process:
            raise InputError(
                f"project folder {project.PROJECT}: MLflow takes what follows a # for a subfolder; rename it"
            )
        backends.check(self.backend, self.backend_config)
        return self


@dataclass(frozen=True)
class Launcher:
    """How a step that has to run is started: for whom, below which run, how, and with which of that run's artifacts as
    its config.
    """

    session: Session
    parent: "Run"
    how: How = How()
    recipe: str = runs.CONFIG


@dataclass
class Attempt:
    """A step that is being run: what it is, and whether its time is over."""

    name: str
    parameters: dict[str, str]
    launcher: Launcher
    tags: dict[str, str]
    overdue: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def guard(self) -> Guard:
        """What knows whether the driver is asked to stop."""
        return self.launcher.session.guard

    @property
    def seconds(self) -> float:
        """How long it may take."""
        return self.launcher.how.timeout.get(self.name, float("inf"))

    def over(self) -> bool:
        """Whether it has to end: the driver is asked to stop, or its time is over."""
        if self.guard.number:
            return True
        self.overdue = self.overdue or time.monotonic() - self.began > self.seconds
        return self.overdue

    @contextmanager
    def watched(self, end: Callable[[threading.Event], None]) -> Iterator[None]:
        """Inside, `end` is called in a thread when it has to end; its argument is set when the block is left."""
        done = threading.Event()

        def watch() -> None:
            while not self.over():
                if done.wait(processes.TICK):
                    return
            end(done)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def launch(name: str, parameters: dict[str, str], launcher: Launcher, because: str) -> "Run":
    """Run a step nested under the launcher's run, wait for it, and try again where its failure can pass.

    It gets the URI of its config and its inputs' run IDs, no local path. Raises StepError with the step's own reason
    where it fails, Interrupted where it or this process is asked to stop.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_PROJECT_ENTRY_POINT

    if launcher.how.in_process and threading.current_thread() is not threading.main_thread():
        raise InputError("--in-process runs one step after the other; set compare.parallel 1")
    parent, attempts = launcher.parent.info, 1 + launcher.how.retries.get(name, 1)
    given = {"config": f"runs:/{parent.run_id}/{launcher.recipe}", **parameters}
    tags = {MLFLOW_PARENT_RUN_ID: parent.run_id, MLFLOW_PROJECT_ENTRY_POINT: name}
    tags |= {run_tags.STEP: name, run_tags.BECAUSE: because}
    guard, say = launcher.session.guard, launcher.session.say
    with guard.watching():
        for number in range(1, attempts + 1):
            counted = {ATTEMPT: str(number)} if number > 1 else {}
            with guard.launching():
                run, reason = _run(Attempt(name, given, launcher, tags | counted))
            if run.info.status == "FINISHED":
                return run
            told = f"{name} failed ({connection.link(run)}): {reason}"
            if run_tags.PASSING not in run.data.tags or number == attempts:
                break
            say(f"{told}; that can pass: attempt {number + 1} in {PAUSE:.0f} s")
            guard.pause(PAUSE)
    for line in step_log.tail(run):
        say(f"  | {line}")
    raise StepError(told)


def origin(parent: "Run") -> dict[str, str]:
    """The tags that say by whom and from which source a run was made."""
    return {key: value for key, value in parent.data.tags.items() if key.startswith(("mlflow.source.", "mlflow.user"))}


def _run(attempt: Attempt) -> "tuple[Run, str]":
    """The run of an attempt, ended, and the reason where it has not finished. Raises Interrupted."""
    how = attempt.launcher.how
    if how.backend != "local":
        run_id, why = backends.run(attempt)
        run_id = run_id or _create(attempt)
    else:
        run_id = _create(attempt)
        why = _in_process(attempt, run_id) if how.in_process else _as_process(attempt, run_id)
    return _conclude(attempt, run_id, why)


def _create(attempt: Attempt) -> str:
    """A run with the tags and parameters that MLflow Projects gives one that it creates."""
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client, parent = MlflowClient(), attempt.launcher.parent
    tags = attempt.tags | origin(parent) | processes.here()
    run_id = str(client.create_run(parent.info.experiment_id, tags=tags, run_name=attempt.name).info.run_id)
    client.log_batch(run_id, params=[Param(name, value) for name, value in attempt.parameters.items()])
    return run_id


def _as_process(attempt: Attempt, run_id: str) -> str:
    """Run a step through MLflow's local backend; why it failed where nothing came of it, else nothing."""
    import mlflow

    os.environ[processes.DRIVER] = processes.driver()
    _python_on_path()
    try:
        with attempt.watched(partial(_end, attempt, run_id)):
            mlflow.projects.run(
                str(project.PROJECT),
                entry_point=attempt.name,
                parameters=attempt.parameters,
                experiment_id=attempt.launcher.parent.info.experiment_id,
                run_id=run_id,
                env_manager=attempt.launcher.how.env_manager,
            )
    except Exception as error:  # whatever MLflow can't start a process for: no conda, a failed build, no shell
        return "" if mlflow_sentences.is_failed_run(error, run_id) else one_line(error)
    return ""


def _python_on_path() -> None:
    """MLproject's commands say `python`: make that this interpreter, whether its environment is activated or not."""
    folder, path = str(Path(sys.executable).parent), os.environ.get("PATH", "")
    if path.split(os.pathsep)[0] != folder:
        os.environ["PATH"] = os.pathsep.join([folder, path])


def _end(attempt: Attempt, run_id: str, done: threading.Event) -> None:
    """End the processes of a run, those that are only about to start included; where the driver has to stop also what
    MLflow has started before them, such as the build of an environment.
    """
    until = time.monotonic() + GRACE
    while not done.wait(processes.TICK):
        left = max(0.0, until - time.monotonic())
        processes.end(processes.of_run(run_id), left)
        if not left and attempt.guard.number:
            processes.end(processes.below(), 0.0)


def _in_process(attempt: Attempt, run_id: str) -> str:
    """Run a step in this process; why it failed as far as the step itself has not said it, else nothing."""
    session, how = attempt.launcher.session, attempt.launcher.how
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in attempt.parameters.items()]
    os.environ[processes.RUN] = run_id
    guard, why = session.guard, ""
    try:
        with attempt.watched(_raise_sigterm), guard.working(), chdir(project.PROJECT):
            cast(Perform, how.in_process)(attempt.name, arguments, session)
    except Interrupted as error:
        guard.number = error.number
    except Exception as error:  # a step of its own process would tell it in a line as well
        why = one_line(error)
    finally:
        os.environ.pop(processes.RUN, None)
    if attempt.overdue:
        guard.forget()
    return why


def _raise_sigterm(_done: threading.Event) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _conclude(attempt: Attempt, run_id: str, why: str) -> "tuple[Run, str]":
    """End the run of an attempt as what became of it, with the reason. Raises Interrupted where the step or this
    process was asked to stop.
    """
    from mlflow import MlflowClient

    client, guard = MlflowClient(), attempt.guard
    run = client.get_run(run_id)
    if run_tags.CONTINUED in run.data.tags:
        run, why = client.get_run(run.data.tags[run_tags.CONTINUED]), ""
    reason = why if run.info.status == "RUNNING" else run.data.tags.get(run_tags.REASON, why)
    if not reason:
        reason = SILENT
        artifacts.sweep(run.info.artifact_uri)
    if run.info.status != "FINISHED":
        signalled = run.data.tags.get(run_tags.SIGNAL, "")  # MLflow makes the run of a process with an error FAILED
        if signalled and not guard.number and not attempt.overdue:
            guard.number = signal.Signals[signalled]
        if attempt.overdue:
            told = f"{attempt.name} took longer than driver.timeout {attempt.name}={attempt.seconds:g} (seconds)"
            reason = f"{told}; allow it more, or start again: it goes on from where it was"
        elif guard.number and not signalled:
            reason = str(Interrupted(guard.number))
        client.set_tag(run.info.run_id, run_tags.REASON, reason)
        client.set_terminated(run.info.run_id, "KILLED" if guard.number else "FAILED")
        run = client.get_run(run.info.run_id)
    guard.check()
    return run, reason
