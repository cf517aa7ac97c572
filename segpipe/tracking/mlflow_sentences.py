"""What is known by the wording or the internals of MLflow, sqlite and sqlalchemy, which may change with any release.

Nothing else in the project looks at them. tests/contract/test_mlflow_sentences.py provokes each of these errors with
the pinned releases, so that an update which words one differently fails there.
"""

import logging
import re
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

SPACE, RIGHTS = "free some space, then start again", "make it and its folder writable, then start again"
LASTING = {
    "disk is full": SPACE,
    "No space left": SPACE,
    "readonly database": RIGHTS,
    "unable to open database": RIGHTS,
}
LOCKED = "database is locked"
FIXES = {
    **LASTING,
    LOCKED: "another process keeps it so; start again when that has ended",
    "not authenticated": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to what the server knows",
    "Permission denied": "ask for MANAGE on the experiment and the model",
}
BUSY_TIMEOUT = "PRAGMA busy_timeout ="
# What they log, with a traceback, is also raised, and told in a line.
LOUD = {"mlflow": logging.WARNING, "mlflow.store.db.utils": logging.CRITICAL, "alembic": logging.WARNING}
FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+), in (?P<name>\S+)$', re.MULTILINE)


class Schema(Enum):
    """By which MLflow a database was made; one without tables is as good as ours."""

    OURS, OLDER, NEWER = "our", "an older", "a newer"


class Frame(NamedTuple):
    """A place in the code."""

    file: str
    line: str
    name: str


def fix(message: str) -> str:
    """How to mend what a store's error says; empty where nothing is known."""
    return next((known for sign, known in FIXES.items() if sign in message), "")


def is_lasting(message: str) -> bool:
    """Whether a store's error stays until somebody mends it: a full disk, a file that can't be written."""
    return any(sign in message for sign in LASTING)


def is_locked(message: str) -> bool:
    """Whether sqlite has waited in vain for another process's lock."""
    return LOCKED in message


def is_missing(error: "MlflowException") -> bool:
    """Whether a store says that there is no such run, model, version, alias or tag."""
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def is_overload(error: "MlflowException") -> bool:
    """Whether a store says that the same may succeed later, as for every operational error of a database."""
    return str(error.error_code) == "TEMPORARILY_UNAVAILABLE"


def is_failed_run(error: BaseException, run_id: str) -> bool:
    """Whether MLflow Projects only says that a step's process has failed, which the step has told itself."""
    return str(error) == f"Run (ID '{run_id}') failed"


def schema(uri: str) -> Schema:
    """Which MLflow has made the tables of a store. MLflow itself calls every other schema out of date, and completes an
    older one without asking where a table is missing.
    """
    from mlflow.store.db import db_types, utils

    if urlsplit(uri).scheme.partition("+")[0] not in db_types.DATABASE_ENGINES:
        return Schema.OURS
    from alembic.script import ScriptDirectory

    engine = utils.create_sqlalchemy_engine_with_retry(uri)
    try:
        found = utils._get_schema_version(engine)
    finally:
        engine.dispose()
    scripts = ScriptDirectory.from_config(utils._get_alembic_config(""))
    if found in (None, *scripts.get_heads()):
        return Schema.OURS
    return Schema.OLDER if found in {script.revision for script in scripts.walk_revisions()} else Schema.NEWER


def busy_timeout(seconds: int) -> str:
    """The statement that tells sqlite how long to wait for another process's lock."""
    return f"{BUSY_TIMEOUT} {1000 * seconds}"


def sets_busy_timeout(statement: str) -> bool:
    """Whether MLflow is about to say so itself: it begins each session with 20 s."""
    return statement.startswith(BUSY_TIMEOUT)


def is_transaction(module: str) -> bool:
    """Whether code of that module may be amid a database transaction: sqlalchemy's, and those of MLflow that use it."""
    return "sqlalchemy" in module


def quieten() -> None:
    """Let MLflow log nothing but warnings, and nothing at all that it raises as well."""
    for name, level in LOUD.items():
        logging.getLogger(name).setLevel(level)


def scoring_reason(message: str) -> str:
    """What the scoring application says is wrong, without the request that it repeats."""
    return message.rpartition("Error: ")[2] if message.startswith("Failed to predict data") else message


def last_frame(trace: str) -> Frame | None:
    """Where a stack trace of the scoring application ends; its last line, the message, may repeat what was sent."""
    frames = FRAME.findall(trace)
    return Frame(*frames[-1]) if frames else None
