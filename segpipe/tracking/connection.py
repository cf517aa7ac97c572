"""The tracking store: where it is, how long it is waited for, and what its errors mean. MLflow is imported late."""

import getpass
import os
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from segpipe.errors import InputError, SegpipeError, StoreError, one_line, redact
from segpipe.files import project
from segpipe.tracking import locations, mlflow_sentences
from segpipe.tracking.mlflow_sentences import Schema

if TYPE_CHECKING:
    from mlflow.entities import Run

T = TypeVar("T")
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


class Patience(NamedTuple):
    """How long a store is waited for: how often MLflow repeats a request to a server, and seconds for sqlite's lock."""

    retries: int
    lock: int


PATIENT = Patience(4, 60)  # half a minute for a server that is started again
SPOOLING = Patience(2, 60)  # what a server does not take within seconds waits on disk
ENDING = Patience(1, 2)  # somebody waits for the process to end, or the store has been waited for already

MLFLOW_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    RETRIES: str(PATIENT.retries),
}


class Sender(Protocol):
    """What speaks for the active run where its server may be away (see `spool.Spool`): it sets tags and takes a folder
    whose content joins the artifacts, now or later, and says at the run's end whether everything has been sent.
    """

    def tags(self, values: dict[str, str]) -> None: ...
    def files(self) -> AbstractContextManager[Path]: ...
    def end(self, status: str, tags: dict[str, str]) -> bool: ...


class Store:
    """The tracking store as a command uses it: how long it is waited for, and what speaks for the active run where a
    server may be away. It is made before MLflow is imported, which reads the environment then.
    """

    def __init__(self) -> None:
        for name, value in MLFLOW_DEFAULTS.items():
            os.environ.setdefault(name, value)
        self._asked = os.environ[RETRIES]
        self._retries = int(self._asked) if self._asked.isdecimal() else PATIENT.retries
        self._patience = PATIENT
        self.sender: Sender | None = None

    def connect(self) -> None:
        """Reach the store. Raises what `reach` does, and MovedError where the folder of the store was moved."""
        self.reach()
        if path := database():
            import mlflow

            everywhere = mlflow.search_experiments(view_type=mlflow.entities.ViewType.ALL)
            locations.check(path, [experiment.artifact_location for experiment in everywhere])

    def reach(self) -> None:
        """Point MLflow at $MLFLOW_TRACKING_URI, or at `mlflow.db` in `project.home()`.

        A relative path becomes absolute, for this process and those it starts. Raises InputError where there can't be a
        store, StoreError where it does not answer or is another MLflow's.
        """
        self._check_retries()
        uri, path = _location()
        if path:
            self._wait_for_locks()
        os.environ["MLFLOW_TRACKING_URI"] = uri
        import mlflow

        mlflow_sentences.quieten()
        mlflow.set_tracking_uri(uri)
        try:
            if path and not path.exists():
                _make(path)
            _check_schema(uri)
            mlflow.MlflowClient().search_experiments(max_results=1)
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"tracking store {redact(uri)} does not answer: {explain(error)}") from None

    def speak_through(self, sender: Sender) -> None:
        """Let `sender` tag and end the active run from now on; what it can't send soon waits."""
        self.sender = sender
        self.wait_with(SPOOLING)

    def wait_with(self, patience: Patience) -> None:
        """How long the store is waited for from now on; a server never longer than the user's own $RETRIES asks."""
        self._patience = patience
        os.environ[RETRIES] = str(min(self._retries, patience.retries))

    def hurry_after(self, error: BaseException) -> None:
        """Wait little from now on after an interrupt, or where the store has been waited for in vain."""
        if isinstance(error, KeyboardInterrupt) or passing(error):
            self.wait_with(ENDING)

    def _check_retries(self) -> None:
        """Raises InputError for a number of retries that is none; once, so that the reason can be noted on the run."""
        asked, self._asked = self._asked, str(self._retries)
        if not asked.isdecimal():
            os.environ[RETRIES] = self._asked
            raise InputError(f"{RETRIES}={asked}: not a whole number from 0 on; unset it, or give one")

    def _wait_for_locks(self) -> None:
        """Let sqlite wait for another process's lock as patience says, in connections that are made from now on."""
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        if not event.contains(Engine, "connect", self._begin_patiently):
            event.listen(Engine, "connect", self._begin_patiently)
            event.listen(Engine, "before_cursor_execute", self._stay_patient, retval=True)

    def _begin_patiently(self, connection: Any, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute(mlflow_sentences.busy_timeout(self._patience.lock))

    def _stay_patient(
        self, _connection: Any, _cursor: Any, statement: str, parameters: Any, *_: object
    ) -> tuple[str, Any]:
        if mlflow_sentences.sets_busy_timeout(statement):
            statement = mlflow_sentences.busy_timeout(self._patience.lock)
        return statement, parameters


def connect() -> Store:
    """Connect to the tracking store as a command does (see `Store.connect`)."""
    store = Store()
    store.connect()
    return store


def database() -> Path | None:
    """The file of the store that was reached; None for a server's."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def user() -> str:
    """The name of who runs this, on the server or else on this machine, or its number where it has none."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _location() -> tuple[str, Path | None]:
    """The URI of the store, and where an sqlite database is. Raises InputError where MLflow could not use that."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project.home() / 'mlflow.db'}"
    if not uri.startswith("sqlite:///"):
        return uri, None
    path = Path(unquote(uri.removeprefix("sqlite:///"))).resolve()  # `mlflow run` writes %20 for a space
    if not path.parent.is_dir():
        raise InputError(f"tracking store {uri}: no such folder {path.parent}")
    if {"?", "%"} & set(str(path)):
        raise InputError(f"tracking store {uri}: no path with ? or % can be one; choose another")
    if not path.exists() and {"'", '"'} <= set(str(Path.cwd())):
        raise InputError(f"{Path.cwd()}: MLflow makes no store from a folder with both quotes in its name; rename it")
    return f"sqlite:///{path}", path


def _make(path: Path) -> None:
    """Let MLflow make a database beside its place, and then put it there whole: a process that is killed meanwhile, or
    another one that makes it too, would leave one that MLflow can neither use nor complete.
    """
    import mlflow

    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with closing(sqlite3.connect(partial)):  # MLflow would try for minutes to open what can't be
            pass
        mlflow.MlflowClient(f"sqlite:///{partial}").search_experiments(max_results=1)
        _put(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _check_schema(uri: str) -> None:
    """Raises StoreError for a database of another MLflow, before this one touches it."""
    import mlflow

    shown, found = redact(uri), mlflow_sentences.schema(uri)
    ours = f"this environment's {mlflow.__version__}"
    if found is not Schema.OURS:
        asked = shlex.quote(uri) if shown == uri else '"$MLFLOW_TRACKING_URI"'
        fixes = {
            Schema.OLDER: f"back it up, then: mlflow db upgrade {asked}",
            Schema.NEWER: "install that one, or set MLFLOW_TRACKING_URI to another store",
        }
        raise StoreError(f"tracking store {shown}: made by {found.value} MLflow than {ours}; {fixes[found]}")


def _put(partial: Path, path: Path) -> None:
    """Give a file its name, unless another process was first."""
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            partial.rename(path)


def link(run: "Run") -> str:
    """A run's page on a server, without user and password; of another store the run's ID."""
    import mlflow

    parts = urlsplit(mlflow.get_tracking_uri())
    if parts.scheme not in ("http", "https"):
        return f"run {run.info.run_id}"
    place = f"{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    return f"{parts.scheme}://{place}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def explain(error: BaseException) -> str:
    """An error as one line; one of a locked, full or read-only store with how to mend it, without the statement."""
    if isinstance(error, SegpipeError):
        return one_line(error)
    text = one_line(next((cause for cause in _causes(error) if isinstance(cause, sqlite3.Error)), error))
    fix = mlflow_sentences.fix(text)
    return f"{text}; {fix}" if fix else text


def get_if_there(get: Callable[..., T], *names: str | None) -> T | None:
    """What a client's method gives; None where the store has no such run, model, version or alias."""
    from mlflow.exceptions import MlflowException

    try:
        return get(*names)
    except MlflowException as error:
        if mlflow_sentences.is_missing(error):
            return None
        raise


def refusal(what: str, error: BaseException) -> SegpipeError:
    """What an error of the store means for who asked for something: StoreError where the store is away or refuses,
    InputError where there is no such thing.
    """
    line = explain(error)
    away = passing(error) or mlflow_sentences.fix(line)
    return (StoreError if away else InputError)(f"{what}: {line}")


def passing(error: BaseException) -> bool:
    """Whether the same may well succeed later: no connection, a lock, an error on the server's side."""
    causes = list(_causes(error))
    return any(map(_passes, causes)) and not any(mlflow_sentences.is_lasting(str(cause)) for cause in causes)


def _passes(cause: BaseException) -> bool:
    from mlflow.exceptions import MlflowException, RestException
    from requests import RequestException

    if isinstance(cause, RequestException):
        return cause.response is None or cause.response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
    if isinstance(cause, RestException):
        return int(cause.get_http_status_code()) >= HTTPStatus.INTERNAL_SERVER_ERROR
    if isinstance(cause, MlflowException):
        return mlflow_sentences.is_overload(cause)
    if isinstance(cause, sqlite3.Error):
        return mlflow_sentences.is_locked(str(cause))
    return isinstance(cause, ConnectionError | TimeoutError)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def reason(error: BaseException) -> str:
    """Why a command ends, as a line."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    return str(error) if isinstance(error, SegpipeError) else f"{type(error).__name__}: {explain(error)}"
