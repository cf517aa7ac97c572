"""The pages of runs: whether they are what would be made now, and making them again without measuring anything.

A run's tag `segpipe.pages` says what its pages were made from (`Keys.pages`). It is emptied before the first page is
replaced and set after the last one, so what a kill leaves half done is completed by the next command.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient

from segpipe.config.sections import Config
from segpipe.errors import InputError
from segpipe.files import hashes
from segpipe.orchestration import claims, explain, keys
from segpipe.orchestration.session import Session
from segpipe.orchestration.step_table import STEPS
from segpipe.tracking import artifacts, connection, lineage, run_tags, runs

if TYPE_CHECKING:
    from mlflow.entities import Run

NONE_YET = "{}"
PAGED = ("evaluate", "register")


def describe(made: keys.Keys, step: str, run: "Run", config: Config) -> str:
    """What is to become of the pages of a run that is reused, as a phrase; empty where they stay, or it has none."""
    if step not in PAGED:
        return ""
    if run_tags.PAGES not in run.data.tags:
        return "its pages stay as they were: made before 0.6.0"
    fault = _fault(run, made.pages(config))
    return f"pages again: {fault}" if fault else ""


def _fault(run: "Run", wanted: Mapping[str, str]) -> str:
    """What was changed since a run's pages were made, in words."""
    known = json.loads(run.data.tags[run_tags.PAGES])
    return ", ".join(explain.files(keys.CODE, known, wanted)) if known else "they were left unfinished"


def renew(session: Session, step: str, run_id: str, config: Config, parent: str, label: str) -> None:
    """Make the pages of a finished run again, unless somebody else has done so meanwhile; `parent` is the run that this
    process works for. Where what they are made of is gone they stay, and that is told.
    """

    def say(line: str) -> None:
        session.say(f"{label}: {line}")

    client, wanted = MlflowClient(), session.keys.pages(config)
    key, hurry = hashes.of_json([run_tags.PAGES, run_id]), session.store.hurry_after
    with claims.claimed(key, parent, say, session.guard.pause, hurry):
        run = client.get_run(run_id)
        if run_tags.PAGES not in run.data.tags or not _fault(run, wanted):
            return
        artifacts.sweep(run.info.artifact_uri)
        try:
            made_from = _evaluation(run, config, wanted) if step == "evaluate" else _register(session, run)
            client.set_tag(run_id, run_tags.PAGES, made_from)
        except InputError as error:
            say(f"its pages stay as they were: {error}")


@contextmanager
def _replaced(step: str, run: "Run") -> Iterator[Path]:
    """A folder for the pages of a finished run, which then take the place of those it has."""
    with artifacts.files(STEPS[step].output, run) as folder:
        yield folder
        MlflowClient().set_tag(run.info.run_id, run_tags.PAGES, NONE_YET)


def _evaluation(run: "Run", config: Config, wanted: Mapping[str, str]) -> str:
    """The pages of an evaluation; what they were made from."""
    with _replaced("evaluate", run) as folder:
        of_evaluation(run.info.run_id, config, folder)
    return json.dumps(wanted)


def _register(session: Session, run: "Run") -> str:
    """The page of a register and its version's description, from those of the evaluation; what these were made from."""
    from segpipe.orchestration import registration
    from segpipe.registry import champions, lock

    evaluate, decided = _decided(run)
    made_from = runs.tag_of(evaluate, run_tags.PAGES)  # before they are read
    with _replaced("register", run) as folder:
        registration.report(evaluate, decided, folder)
    name, number = (decided["version"][part] for part in ("name", "version"))
    with lock.turn(name, session.say, session.store.hurry_after) as turn:
        champions.present(turn, champions.version(name, number), registration.card(evaluate))
    return made_from


def _decided(run: "Run") -> tuple[str, dict[str, Any]]:
    """The evaluation that a run of register decided about, and what it decided."""
    from segpipe.orchestration import registration

    path = artifacts.local(f"runs:/{run.info.run_id}/{STEPS['register'].output}/{registration.DECISION}")
    return run.data.tags[f"{run_tags.INPUT}evaluate"], json.loads(path.read_text(encoding="utf-8"))


def tell_override(session: Session, run_id: str) -> None:
    """Make the report of a run of register again, now that its version was promoted against the gate. Where it can't
    be made it stays, and that is told.
    """
    from segpipe.orchestration import registration

    try:
        run = connection.get_if_there(MlflowClient().get_run, run_id)
        if run is None or run.info.lifecycle_stage == lineage.DELETED:
            raise InputError(f"run {run_id} of register is gone")
        evaluate, decided = _decided(run)
        with artifacts.files(STEPS["register"].output, run) as folder:
            registration.report(evaluate, decided, folder)
    except InputError as error:
        session.say(f"the report stays as it was: {error}")


def of_evaluation(run_id: str, config: Config, folder: Path, kept: Path | None = None) -> None:
    """Write the pages of an evaluation's run into a folder, from what it keeps. No model is looked at."""
    from segpipe.data.dataset import Dataset
    from segpipe.evaluation import pages
    from segpipe.evaluation.kept import Kept
    from segpipe.recording import logged_models
    from segpipe.tracking import lineage

    tags = MlflowClient().get_run(run_id).data.tags
    dataset = Dataset.open(artifacts.local(f"runs:/{tags[f'{run_tags.INPUT}preprocess']}/dataset"))
    trained = logged_models.training(tags[f"{run_tags.INPUT}train"])
    whole = Kept.read(kept or artifacts.local(f"runs:/{run_id}/{STEPS['evaluate'].output}"))
    pages.write(whole, dataset, config, trained, lineage.of(run_id), folder)
