"""What a champion shows on the test set that its challenger was measured on."""

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.evaluation import kept, measuring
from segpipe.metrics.catalogue import METRICS
from segpipe.tracking import artifacts, runs


def cases_of(champion: ModelVersion, preprocess: str, config: Config, progress: measuring.Progress) -> pd.DataFrame:
    """The champion's per-case results on a dataset's test set, without patients it was trained or chosen on.

    Those of its own evaluation where that was the same test set and the same way to measure, otherwise measured now,
    with its own preprocessing and labelling.
    """
    tags = champion.tags
    if tags.get("test_digest") == runs.tag_of(preprocess, "segpipe.test_digest"):
        known = evaluated(tags["evaluate_run"], config)
        if known is not None:
            return known
    from segpipe.data.dataset import Dataset
    from segpipe.data.manifest import FILE, Manifest
    from segpipe.inference.predictor import Predictor
    from segpipe.recording import logged_models
    from segpipe.runtime import devices

    dataset = Dataset.open(artifacts.local(f"runs:/{preprocess}/dataset"))
    device = devices.device(config.train)
    predictor = Predictor.load(logged_models.folder(f"models:/{champion.name}/{champion.version}"), device)
    own = Manifest.read(artifacts.local(f"runs:/{tags['preprocess_run']}/dataset/{FILE}"))
    cases = measuring.evaluate(predictor, dataset, predictor.spec.labelling, config.evaluate, progress).cases
    seen = [case for split in ("train", "val") for case in own.of(split)]
    patients, files = {case.patient for case in seen}, {case.sha256 for case in seen}
    unseen = [c.case for c in dataset.where(split="test").cases if c.patient not in patients and c.sha256 not in files]
    return cases[cases["case"].isin(unseen)]


def evaluated(run_id: str, config: Config) -> pd.DataFrame | None:
    """The table of an evaluation, unless it is gone, or was made with another tolerance, band or set of metrics."""
    path = f"evaluation/{kept.CASES}"
    if not artifacts.has(run_id, path):
        return None
    params, knobs = MlflowClient().get_run(run_id).data.params, settings.flat(config)
    if any(params.get(f"cfg.{knob}") != knobs[knob] for knob in ("evaluate.tolerance", "evaluate.band")):
        return None
    cases = kept.table(artifacts.local(f"runs:/{run_id}/{path}"))
    return cases if set(METRICS) <= set(cases) else None
