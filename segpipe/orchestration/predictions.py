"""A batch of predictions under a run: which model, which cases, where the results go, what is recorded of them."""

import json
import re
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.models import Model

from segpipe.config.sections import Config
from segpipe.data.manifest import FILE, Manifest
from segpipe.errors import InputError, StepError
from segpipe.files import hashes
from segpipe.inference.predictor import Predictor
from segpipe.inference.spec import WEIGHTS, Labelling
from segpipe.orchestration import keys
from segpipe.orchestration.screen import Screen
from segpipe.prediction import batch, inputs, results, summary
from segpipe.recording import logged_models, offline
from segpipe.registry import champions
from segpipe.runtime import devices
from segpipe.tracking import artifacts, connection, lineage, run_tags, runs

MODEL = "model"  # a knob's value: as the model was measured


def predict(screen: Screen, config: Config) -> int:
    """Segment everything under the active run; the number of cases that failed. Raises StepError where all did."""
    knobs, device = config.predict, devices.device(config.train)
    uri = champions.pinned(champions.named(config))
    weights = logged_models.folder(uri)
    predictor = Predictor.load(weights, device)
    model = {"model": uri, "model_id": str(Model.load(str(weights.parent.parent)).model_id)}
    model |= {"weights_sha256": hashes.sha256(weights / WEIGHTS)}
    runs.tag(**model)
    mlflow.set_tags({"mode": "prediction", "device": str(device)} | _dataset(knobs.input))
    found = _source(config)
    items = inputs.find(found, predictor.spec, config)
    asked = knobs.model_dump(include=set(Labelling._fields))
    labelling = predictor.spec.labelling._replace(**{name: v for name, v in asked.items() if v != MODEL})
    request = results.Request(
        input=knobs.input if knobs.input.startswith("runs:/") else str(found),
        weights_sha256=model["weights_sha256"],
        spec_sha256=hashes.of_json(predictor.spec.model_dump(mode="json")),
        ignore_label=config.data.ignore_label,
        comparisons=knobs.comparisons,
        **labelling._asdict(),
    )
    folder = _output(config, found, offline.outputs(config.tracking.outputs) / "predictions" / request.key)
    screen.say(f"{len(items)} cases, {uri} on {device}, results in {folder}")
    seen = seen_by(model["model_id"])
    outcome = batch.run(predictor, items, request, folder, model, screen.progress("predict"), seen)
    summary.summarise(outcome, folder, request, model, str(device), config.evaluate, config.seed)
    with artifacts.folder("predictions") as kept:
        results.mirror(folder, kept)
    mlflow.log_metrics(outcome.metrics())
    runs.tag(figure=summary.headline(outcome))
    if len(outcome.failures) == outcome.files:
        case, reason = outcome.failures[0]
        raise StepError(f"all {outcome.files} files failed; {case}: {reason}")
    if outcome.failures:
        mlflow.set_tag("files_failed", str(len(outcome.failures)))
    if told := summary.agreement(outcome):
        screen.say(told)
    screen.say(f"{summary.headline(outcome)}: {folder / results.TABLE}")
    return len(outcome.failures)


def seen_by(model_id: str) -> dict[str, str]:
    """The split of each file and case, by its SHA-256, of the data set that a model was trained on; empty where the
    store no longer has that.
    """
    model = connection.get_if_there(MlflowClient().get_logged_model, model_id)
    run = lineage.find(str(model.source_run_id)) if model else None
    preprocess = run.data.tags.get(f"{run_tags.INPUT}preprocess", "") if run else ""
    if not (preprocess and artifacts.has(preprocess, f"dataset/{FILE}")):
        return {}
    manifest = Manifest.read(artifacts.local(f"runs:/{preprocess}/dataset/{FILE}"))
    seen: dict[str, str] = {case.sha256: case.split for case in manifest.cases}
    if artifacts.has(preprocess, keys.MADE_OF):
        made = json.loads(artifacts.local(f"runs:/{preprocess}/{keys.MADE_OF}").read_text(encoding="utf-8"))
        raw = made[keys.RAW]
        seen |= {raw[file]: case.split for case in manifest.cases for file in case.files if file in raw}
    return seen


def _dataset(asked: str) -> dict[str, str]:
    """The tag for the run whose dataset is the input."""
    match = re.fullmatch(r"runs:/(?P<run>[^/]+)/dataset/?", asked)
    return {f"{run_tags.INPUT}preprocess": match["run"]} if match else {}


def _output(config: Config, found: Path, default: Path) -> Path:
    """The folder for the results. Raises InputError where it would be read as input the next time."""
    asked = config.predict.output
    folder = Path(asked).expanduser().resolve() if asked else default
    if found.is_dir() and folder.is_relative_to(found):
        raise InputError(f"predict.output={folder}: lies inside predict.input; give a folder outside of {found}")
    return folder


def _source(config: Config) -> Path:
    """What to segment, on this machine. Raises InputError where a dataset can't be fetched."""
    asked = config.predict.input
    return artifacts.local(asked) if asked.startswith("runs:/") else Path(asked).expanduser().resolve()
