"""Where artifacts lie on this machine, also after the folder of their store was moved.

MLflow records absolute locations: artifacts beside a database that was moved would be looked for, and written, at the
old place.
"""

import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

from segpipe.errors import InputError
from segpipe.tracking import run_tags

FOLDER = "mlruns"  # beside the database, with a folder for each experiment
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
    ("trace_tags", "value"),
)
READY = 2  # mlflow.entities.LoggedModelStatus.READY
WRITTEN = f"""
    SELECT artifact_uri FROM runs JOIN tags USING (run_uuid)
    WHERE tags.key = '{run_tags.KEY}' AND status = 'FINISHED' AND lifecycle_stage = 'active'
    UNION SELECT artifact_location FROM logged_models WHERE status = {READY} AND lifecycle_stage = 'active'
"""  # each of these has files: a step that finished, and a model  # noqa: S608  # only constants


class MovedError(InputError):
    """The artifacts lie beside their database, which points to another place, where they are not."""

    def __init__(self, database: Path, old: Path) -> None:
        self.database, self.old, self.new = database, old, database.parent / FOLDER
        super().__init__(
            f"tracking store {database} points to artifacts in {old}, but they are in {self.new}: "
            "if its folder was moved or renamed, correct that with: python -m steps.moved"
        )


def local_root(uri: str) -> Path | None:
    """The folder that an artifact URI stands for; None where it is not on this machine."""
    parts = urlparse(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if not parts.scheme else None


def check(database: Path, experiments: Iterable[str]) -> None:
    """Raises MovedError where the runs of an experiment lie beside the database and none where its location says.

    A location that is not in a folder `mlruns`, or that has no counterpart here, is where somebody wants it.
    """
    here = database.parent / FOLDER
    for location in experiments:
        recorded = local_root(location)
        if recorded is None or recorded.parent.name != FOLDER or recorded.parent == here:
            continue
        runs = _folders(here / recorded.name)
        if runs and not runs & _folders(recorded):
            raise MovedError(database, recorded.parent)


def _folders(experiment: Path) -> set[str]:
    """The folders of an experiment's runs."""
    return {path.name for path in experiment.iterdir()} - {"models"} if experiment.is_dir() else set()


def correct(moved: MovedError) -> str:
    """Let the database point to the artifacts beside it, all at once, after a copy of it; what was done, as a line.

    Raises InputError where some are not there, or the database can't be written; then nothing is changed.
    """
    try:
        with closing(sqlite3.connect(moved.database, timeout=60, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            _check_all_there(database, moved)
            saved = _save(moved.database)
            changed = dict.fromkeys((table for table, _ in COLUMNS), 0)
            for table, column in COLUMNS:
                changed[table] = max(changed[table], _rewrite(database, table, column, moved))
            database.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise InputError(f"{moved.database}: {error}; nothing was changed") from None
    told = ", ".join(f"{table.replace('_', ' ')} {count}" for table, count in changed.items() if count)
    return f"{moved.database}: what pointed to {moved.old} points to {moved.new} now ({told}); as it was: {saved}"


def _check_all_there(database: sqlite3.Connection, moved: MovedError) -> None:
    roots = [local_root(uri) for (uri,) in database.execute(WRITTEN)]
    paths = [moved.new / root.relative_to(moved.old) for root in roots if root and root.is_relative_to(moved.old)]
    missing = [path for path in paths if not path.is_dir()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} finished runs and models have no files in {moved.new}: no {missing[0]}; "
            f"move them there, from {moved.old} if that has them, or delete these runs; nothing was changed"
        )


def _save(path: Path) -> Path:
    """Copy a database to a new file beside it."""
    saved = path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}.bak")
    try:
        with closing(sqlite3.connect(path)) as database, closing(sqlite3.connect(saved)) as copy:
            database.backup(copy)
    except sqlite3.Error:
        saved.unlink(missing_ok=True)
        raise
    return saved


def _rewrite(database: sqlite3.Connection, table: str, column: str, moved: MovedError) -> int:
    """Replace the beginning of a column's values, as URI and as path; how many were changed."""
    changed = 0
    for old, new in ((moved.old.as_uri(), moved.new.as_uri()), (str(moved.old), str(moved.new))):
        statement = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608  # names from COLUMNS
        changed += database.execute(statement, (new, len(old) + 1, len(old) + 1, f"{old}/")).rowcount
    return changed
