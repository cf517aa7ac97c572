"""Records of a training that are sent more than once, on a real store."""

import warnings

import mlflow
from conftest import network, training_set

from segpipe.inference.predictor import Predictor
from segpipe.inference.spec import ModelSpec
from segpipe.recording.spool import Spool
from segpipe.tracking import run_tags, runs


def test_a_model_recorded_again_with_another_time_keeps_the_first_one(store, tmp_path):
    config, _, _ = training_set(tmp_path)
    spec = ModelSpec(
        model=config.model, preprocess=config.preprocess, kind="picture", channels=("image",), classes=("disc",)
    )
    predictor = Predictor(spec, network(config))
    with mlflow.start_run() as run, warnings.catch_warnings():
        spool = Spool(run.info.run_id, tmp_path / "spool", lambda _: None)
        warnings.simplefilter("ignore")  # mlflow's own, of the packages it uses
        for measured in (1.0, 2.0, 3.0):
            spool.model(predictor, {"inference_ms": measured, "best_val_dice": 0.5}, 1_700_000_000_000)
            assert spool.pending() == [], spool.refused
    assert runs.history(run.info.run_id, "inference_ms") == [1.0]
    model = mlflow.get_logged_model(mlflow.get_run(run.info.run_id).data.tags[run_tags.MODEL])
    assert {metric.key: metric.value for metric in model.metrics} == {"inference_ms": 1.0, "best_val_dice": 0.5}
