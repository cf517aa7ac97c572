"""Which training goes on: an interrupted one with the same key, or a new one.

A training holds a lock on its folder of checkpoints, so that nobody continues one that is still at work.
"""

import atexit
import fcntl
import os
import shutil
import time
from pathlib import Path

from segpipe.config.sections import Config
from segpipe.errors import ConflictError, InputError
from segpipe.orchestration.session import Session
from segpipe.recording import artifact_tree, offline


def claim_run(session: Session, config: Config, key: str, folder: Path) -> Path:
    """The folder of checkpoints, below `folder`, of the run to work on, which is then the active one: an interrupted
    one, as train.resume says, or the one that is active now, which gets its name. Raises InputError where train.resume
    can't be followed, ConflictError where another process is at work on that run.
    """
    from segpipe.tracking import runs

    active = str(runs.active().info.run_id)
    for run_id in _candidates(config, key, folder):
        if run_id != active and _claim(session, folder / run_id):
            runs.continue_run(run_id, config.tracking.system_metrics)
            if session.log:
                session.log.follow(run_id)
            session.say(f"continues run {run_id}")
            return folder / run_id
    if _mode(config) not in ("auto", "never"):
        raise ConflictError(f"train.resume={config.train.resume}: that run is at work right now")
    _claim(session, folder / active)
    runs.name_run(artifact_tree.run_name(config, time.time()))
    return folder / active


def _mode(config: Config) -> str:
    """train.resume; what torchrun has started again always continues."""
    return "auto" if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) else config.train.resume


def _candidates(config: Config, key: str, folder: Path) -> list[str]:
    from segpipe.tracking import run_tags, runs

    mode = _mode(config)
    if mode == "never":
        return []
    if mode == "auto":
        found = runs.unfinished("train", key)
        return [run.info.run_id for run in found if (folder / run.info.run_id).is_dir()]
    tags = runs.interrupted(mode, "train").data.tags
    if tags.get(run_tags.KEY) != key:
        raise InputError(f"train.resume={mode}: that run has another config, code or dataset; use auto or never")
    if not (folder / mode).is_dir():
        raise InputError(f"train.resume={mode}: no checkpoint of it in {folder}; set tracking.outputs to where it ran")
    return [mode]


def claim_folder(session: Session, config: Config, key: str, outputs: Path) -> Path:
    """The folder of a training without MLflow: an interrupted one's, as train.resume says, or a new one."""
    mode = _mode(config)
    known = [] if mode == "never" else offline.unfinished(outputs, key)
    if mode not in ("auto", "never"):
        known = [run for run in known if run.name == mode]
        if not known:
            raise InputError(f"train.resume={mode}: no unfinished run of that name and this config in {outputs}")
    for run in known:
        if _claim(session, run / offline.RESUME):
            session.say(f"continues {run}")
            return run
    root = offline.new_folder(outputs, artifact_tree.run_name(config, time.time()))
    _claim(session, root / offline.RESUME)
    return root


def _claim(session: Session, folder: Path) -> bool:
    """Take a folder for as long as this process lives; false where another has it."""
    if folder in session.claimed:
        return True  # of an attempt in this process, which has failed
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_CREAT | os.O_WRONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    session.claimed[folder] = lock
    return True


def release(folder: Path) -> None:
    """Remove the checkpoints of a finished training, once its run has ended."""
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
