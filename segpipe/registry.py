"""Promotion: what a model must show to become champion, and the aliases that say who is."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from segpipe import artifacts, evaluation, tracking
from segpipe.config import GateConfig, TrainConfig
from segpipe.errors import InputError

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"


@dataclass(frozen=True)
class Comparison:
    """One demand of the gate: the value shown, the value asked for, and whether it was met."""

    name: str
    value: float
    required: float
    passed: bool


@dataclass(frozen=True)
class Decision:
    """Whether the challenger becomes champion, why, and every number behind it."""

    promote: bool
    reasons: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = ()

    def to_json(self, **more: object) -> str:
        """The decision as JSON, with what else is to be remembered about it."""
        return json.dumps({**asdict(self), **more}, indent=1)


def decide(challenger: pd.DataFrame, champion: pd.DataFrame | None, gate: GateConfig) -> Decision:
    """Promote where the floor holds and the mean Dice over the same test cases is better than the champion's.

    Both tables have columns case and dice, NaN where both masks are empty; the champion's may lack cases it was trained
    on, which then do not count in the comparison. Raises InputError where it has cases that the challenger has not.
    """
    value = float(challenger["dice"].mean())
    if np.isnan(value):
        return Decision(False, ("no test case has a Dice: reference and prediction are empty everywhere",))
    floor = Comparison("mean test Dice", value, gate.min_dice, value >= gate.min_dice)
    if not floor.passed:
        return Decision(False, (f"mean test Dice {value:.4f} is below gate.min_dice {gate.min_dice}",), (floor,))
    if champion is None:
        return Decision(True, (f"first model; mean test Dice {value:.4f}",), (floor,))
    if not set(champion["case"]) <= set(challenger["case"]):
        raise InputError("challenger and champion were measured on different cases; evaluate both on one dataset")
    ours = challenger[challenger["case"].isin(champion["case"])]["dice"].mean()
    gain = float(ours - champion["dice"].mean())
    if np.isnan(gain):
        return Decision(False, ("the champion was trained on all test cases that could be compared",), (floor,))
    better = Comparison("gain in mean Dice", gain, gate.min_improvement, gain > 0 and gain >= gate.min_improvement)
    asked = "" if better.passed else f": not better by what the gate asks ({gate.min_improvement})"
    shared = (
        f"on {len(champion)} of {len(challenger)} cases" if len(champion) < len(challenger) else "on the same cases"
    )
    reason = f"mean Dice {ours:.4f}, {gain:+.4f} against the champion {shared}{asked}"
    return Decision(better.passed, (reason,), (floor, better))


def version_of(name: str, model_id: str, tags: dict[str, str]) -> ModelVersion:
    """The registered version of a logged model, created if there is none yet; safe to repeat."""
    client = MlflowClient()
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for known in client.search_model_versions(f"name = '{name}'"):
        if known.source == f"models:/{model_id}":
            return _retagged(known, tags)
    model = client.get_logged_model(model_id)
    return client.create_model_version(
        name, f"models:/{model_id}", run_id=model.source_run_id, tags=tags, model_id=model_id
    )


def _retagged(version: ModelVersion, tags: dict[str, str]) -> ModelVersion:
    """A version that was registered before, with the tags of its newest evaluation."""
    client, number = MlflowClient(), str(version.version)
    for key, value in tags.items():
        client.set_model_version_tag(version.name, number, key, value)
    return client.get_model_version(version.name, number)


def holder(name: str, alias: str = CHAMPION) -> ModelVersion | None:
    """The version that has an alias; None where the model or the alias does not exist."""
    try:
        return MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def cases_of(
    champion: ModelVersion, preprocess: str, train: TrainConfig, progress: evaluation.Progress
) -> pd.DataFrame:
    """The champion's per-case results on a dataset's test set, without patients it was trained or chosen on.

    Those of its own evaluation where that was the same test set, otherwise measured now, with its own preprocessing and
    threshold.
    """
    tags, known = champion.tags, "evaluation/cases.csv"
    same = tags.get("test_digest") == tracking.tag_of(preprocess, "segpipe.test_digest")
    if same and artifacts.has(tags["evaluate_run"], known):
        return evaluation.read(artifacts.local(f"runs:/{tags['evaluate_run']}/{known}"))
    from segpipe import distributed, logged_models
    from segpipe.inference import Predictor
    from segpipe.manifest import FILE, Manifest

    folder = artifacts.local(f"runs:/{preprocess}/dataset")
    device = distributed.device(train)
    predictor = Predictor.load(logged_models.folder(f"models:/{champion.name}/{champion.version}"), device)
    manifest = Manifest.load(folder)
    own = Manifest.read(artifacts.local(f"runs:/{tags['preprocess_run']}/dataset/{FILE}"))
    cases = evaluation.evaluate(predictor, manifest, folder, predictor.spec.threshold, progress)
    seen = [case for split in ("train", "val") for case in own.of(split)]
    patients, files = {case.patient for case in seen}, {case.sha256 for case in seen}
    unseen = [c.case for c in manifest.of("test") if c.patient not in patients and c.sha256 not in files]
    return cases[cases["case"].isin(unseen)]


def apply(name: str, version: str, decision: Decision) -> None:
    """Move the aliases; repeating it changes nothing, and whenever it stops there is one champion.

    Promoted: `previous` keeps the old champion, then `champion` moves. Refused: `challenger` names the version.
    """
    client = MlflowClient()
    champion = holder(name)
    if not decision.promote:
        if champion is None or str(champion.version) != version:
            client.set_registered_model_alias(name, CHALLENGER, version)
        return
    if champion is not None and str(champion.version) != version:
        client.set_registered_model_alias(name, PREVIOUS, str(champion.version))
    client.set_registered_model_alias(name, CHAMPION, version)
    challenger = holder(name, CHALLENGER)
    if challenger is not None and str(challenger.version) == version:
        client.delete_registered_model_alias(name, CHALLENGER)


def describe(version: ModelVersion) -> dict[str, Any]:
    """Name, version and the figures its tags carry."""
    return {"name": version.name, "version": str(version.version), **version.tags}
