"""Artifacts and models through a real tracking server: each folder is fetched once, and damage is found."""

import os
import re
import subprocess
import sys
import warnings

import mlflow
import pytest
from conftest import network, training_set
from servers import Server

from segpipe.errors import InputError
from segpipe.files import inventory
from segpipe.files.project import PROJECT
from segpipe.inference.predictor import Predictor
from segpipe.inference.spec import ModelSpec
from segpipe.recording import logged_models
from segpipe.serving.served_model import ARTIFACT
from segpipe.tracking import artifact_cache, artifacts, connection, runs

NAME = "Größe 1.csv"
FETCH = """
import sys
from segpipe.tracking import artifacts, connection
connection.connect()
print(artifacts.local(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server, and this process and those it starts pointed at it, with a cache of their own."""
    home = tmp_path_factory.mktemp("server home")
    found, saved = Server(home), dict(os.environ)
    found.start()
    os.environ["MLFLOW_TRACKING_URI"] = found.uri
    os.environ["SEGPIPE_CACHE"] = str(home / "cache")
    connection.connect()
    yield found
    found.kill()
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def dataset(server):
    """A run with a folder of artifacts."""
    with mlflow.start_run() as run, artifacts.folder("dataset") as folder:
        (folder / "sub dir").mkdir()
        (folder / "sub dir" / NAME).write_text(f"only of run {run.info.run_id}")
        (folder / "train images.npy").write_bytes(os.urandom(3_000_000))
    return run.info.run_id


def damage(run_id, name):
    return artifacts.damage(mlflow.get_run(run_id).info.artifact_uri, name)


def stored(server, run_id, path):
    """Where the server keeps an artifact."""
    (found,) = server.artifacts.glob(f"*/{run_id}/artifacts/{path}")
    return found


def downloads(server, name):
    """How often a file of that name was asked for."""
    return len(re.findall(rf"GET \S*/mlflow-artifacts/artifacts/\S*{name} ", server.log.read_text()))


def cached(server):
    """Keys in the cache."""
    return {path.name for path in (server.home / "cache" / "artifacts").iterdir() if path.is_dir()}


def test_a_folder_arrives_once_however_many_processes_ask_for_it_at_once(server, dataset):
    uri, before = f"runs:/{dataset}/dataset", downloads(server, "images.npy")
    command = [sys.executable, "-c", FETCH, uri]
    several = [subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {process.communicate(timeout=60)[0].strip() for process in several}
    assert [process.returncode for process in several] == [0, 0]
    folder = artifacts.local(uri)
    assert told == {str(folder)}
    assert folder.name in cached(server)
    assert (folder / "sub dir" / NAME).read_text() == f"only of run {dataset}"
    assert artifacts.local(f"{uri}/sub dir/{NAME}") == folder / "sub dir" / NAME
    assert downloads(server, "images.npy") - before == 1


def test_a_download_that_is_not_what_was_written_is_refused(server, dataset):
    path = stored(server, dataset, "dataset/train images.npy")
    content = path.read_bytes()
    path.write_bytes(b"X" + content[1:])
    keys = cached(server)
    with pytest.raises(InputError, match=r"dataset/train images\.npy is not what was written, as fetched; try again"):
        artifacts.local(f"runs:/{dataset}/dataset")
    assert cached(server) == keys
    path.write_bytes(content)
    assert inventory.damage(artifacts.local(f"runs:/{dataset}/dataset")) == ""


def test_damage_on_the_server_is_told_without_fetching_anything(server, dataset):
    before = downloads(server, "images.npy")
    assert damage(dataset, "dataset") == ""
    path = stored(server, dataset, "dataset/train images.npy")
    os.truncate(path, path.stat().st_size - 1)
    assert damage(dataset, "dataset") == "dataset/train images.npy is cut short"
    stored(server, dataset, f"dataset/sub dir/{NAME}").unlink()
    assert damage(dataset, "dataset") == f"dataset/sub dir/{NAME} is missing"
    stored(server, dataset, f"dataset/{inventory.FILE}").unlink()
    assert damage(dataset, "dataset") == "dataset/inventory.json is missing"
    assert downloads(server, "images.npy") == before


def test_files_that_join_a_folder_join_its_inventory(server):
    with mlflow.start_run() as run:
        for name, text in (("decision.json", "{}"), ("record.md", "approved"), ("decision.json", '{"a": 1}')):
            with artifacts.files("register") as folder:
                (folder / name).write_text(text)
            assert damage(run.info.run_id, "register") == ""
    folder = artifacts.local(f"runs:/{run.info.run_id}/register")
    assert set(inventory.read(folder)) == {"decision.json", "record.md"}
    assert (folder / "decision.json").read_text() == '{"a": 1}'


def test_files_of_a_finished_run_are_replaced_and_a_kill_amid_it_damages_nothing(server, monkeypatch):
    with mlflow.start_run() as run, artifacts.folder("evaluation") as folder:
        (folder / "cases.csv").write_text("measured")
        (folder / "report.html").write_text("old")
    finished, seen = mlflow.get_run(run.info.run_id), []
    log = mlflow.log_artifacts

    def looked_at(*arguments, **named):
        seen.append(set(artifact_cache.find(finished.info.artifact_uri, "evaluation").entries()))
        log(*arguments, **named)
        seen.append(damage(run.info.run_id, "evaluation"))

    monkeypatch.setattr(mlflow, "log_artifacts", looked_at)
    with artifacts.files("evaluation", finished) as folder:
        (folder / "report.html").write_text("new")
    assert seen == [{"cases.csv"}, ""]
    assert damage(run.info.run_id, "evaluation") == ""
    whole = artifacts.local(f"runs:/{run.info.run_id}/evaluation")
    assert [(whole / name).read_text() for name in ("cases.csv", "report.html")] == ["measured", "new"]
    assert vars(mlflow.get_run(run.info.run_id).info) == vars(finished.info)


def test_what_has_no_inventory_comes_as_a_copy_of_this_process(server):
    with mlflow.start_run() as run:
        runs.log_text("seed: 1", "config/resolved.yaml")
    keys = cached(server)
    path = artifacts.local(f"runs:/{run.info.run_id}/config/resolved.yaml")
    assert path.read_text() == "seed: 1"
    assert cached(server) == keys
    with pytest.raises(InputError, match=f"runs:/{run.info.run_id}/config/other.yaml"):
        artifacts.local(f"runs:/{run.info.run_id}/config/other.yaml")
    with pytest.raises(InputError, match="runs:/gone/dataset"):
        artifacts.local("runs:/gone/dataset")


@pytest.fixture(scope="module")
def model(server, tmp_path_factory):
    """The ID of a logged model, registered with an alias."""
    home = tmp_path_factory.mktemp("model")
    config, _, _ = training_set(home)
    spec = ModelSpec(
        model=config.model, preprocess=config.preprocess, kind="picture", channels=("image",), classes=("disc",)
    )
    Predictor(spec, network(config)).save(home / ARTIFACT)
    with mlflow.start_run(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow compares the columns of an example with a range
        model_id = logged_models.log(home / ARTIFACT)
    client = mlflow.MlflowClient()
    client.create_registered_model("a model")
    version = client.create_model_version("a model", f"models:/{model_id}", model_id=model_id)
    client.set_registered_model_alias("a model", "champion", version.version)
    return model_id


def test_a_model_s_weights_come_once_whatever_it_is_called(server, model):
    folders = [
        logged_models.folder(uri) for uri in (f"models:/{model}", "models:/a model/1", "models:/a model@champion")
    ]
    assert {folder.resolve().name for folder in folders} <= cached(server)
    assert downloads(server, "weights.safetensors") == 1
    assert logged_models.ARTIFACT == ARTIFACT
    whole = artifacts.local(f"models:/{model}")
    assert (whole / "MLmodel").is_file()
    assert mlflow.pyfunc.load_model(str(whole)).metadata.model_id == model
    assert Predictor.load(folders[0]).spec.classes == ("disc",)
    assert logged_models.weights(model)[1] > 0


def test_damage_to_a_model_is_found(server, model):
    assert logged_models.damage(model) == ""
    (path,) = server.artifacts.rglob(f"{model}/artifacts/{artifacts.WEIGHTS}/weights.safetensors")
    content = path.read_bytes()
    os.truncate(path, 100)
    assert logged_models.damage(model) == "segpipe/weights.safetensors is cut short"
    path.unlink()
    assert logged_models.damage(model) == "segpipe/weights.safetensors is missing"
    path.write_bytes(content)
    assert logged_models.damage("m-" + "0" * 32) == f"model m-{'0' * 32} is gone"


def test_a_model_without_an_inventory_still_comes(server, model):
    weights = artifact_cache.find(mlflow.MlflowClient().get_logged_model(model).artifact_location, artifacts.WEIGHTS)
    assert weights is not None
    (path,) = server.artifacts.rglob(f"{model}/artifacts/{artifacts.WEIGHTS}/{inventory.FILE}")
    path.unlink()
    artifacts._model.cache_clear()
    folder = logged_models.folder(f"models:/{model}")
    assert Predictor.load(folder).spec.classes == ("disc",)
    path.write_bytes(weights.content)
