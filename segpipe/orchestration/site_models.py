"""The models of single sites that the model of a federation is compared with, each at its own site."""

from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient

from segpipe.config import settings
from segpipe.config.sections import AVERAGED, Config
from segpipe.data.manifest import FILE, Manifest
from segpipe.orchestration import champion_cases
from segpipe.orchestration.keys import Keys
from segpipe.tracking import artifacts, run_tags, runs

if TYPE_CHECKING:
    import pandas as pd


def variant(config: Config, **federate: Any) -> Config:
    """The same training with other knobs `federate`, the rest of them at their defaults, of as many epochs."""
    values = {**config.model_dump(), "federate": federate}
    values["train"]["epochs"] = config.epochs
    return settings.build(values)


def alone(config: Config, site: str) -> Config:
    """The same training at one site alone."""
    return variant(config, strategy="local", sites=(site,))


def evaluations(keys: Keys, evaluate: str) -> dict[str, str]:
    """For each site of the federation that an evaluation is of, the run ID of the evaluation of the same training at
    that site alone, empty where there is none. No sites where the training was no federation.
    """
    train = MlflowClient().get_run(runs.tag_of(evaluate, f"{run_tags.INPUT}train"))
    if train.data.params.get("cfg.federate.strategy") not in AVERAGED:
        return {}
    recorded = settings.recorded(artifacts.local(f"runs:/{train.info.run_id}/{runs.CONFIG}"), {})
    preprocess = runs.tag_of(train.info.run_id, f"{run_tags.INPUT}preprocess")
    manifest = Manifest.read(artifacts.local(f"runs:/{preprocess}/dataset/{FILE}"))
    upstream = {"preprocess": runs.tag_of(preprocess, run_tags.KEY)}
    found = {}
    for site in manifest.sites(recorded.federate.sites):
        key = keys.key("train", alone(recorded, site), upstream)
        made = (runs.built_on("evaluate", "train", run.info.run_id) for run in runs.finished("train", key.digest))
        found[site] = next((run.info.run_id for run in made if run), "")
    return found


def cases(found: dict[str, str], config: Config) -> "dict[str, pd.DataFrame | None]":
    """What these evaluations measured of each test case; None where there is none, or it measured in another way."""
    return {site: champion_cases.evaluated(run_id, config) if run_id else None for site, run_id in found.items()}
