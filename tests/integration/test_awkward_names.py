"""Folders, stores and texts with the characters that shells, URIs, SQL and YAML care about, and long ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, copy_project, write_folder

from segpipe.config import settings

AWKWARD = 'it\'s "für" 日本 $HOME; a & b # 100% (x) ?'
IN_URIS = 'it\'s "für" 日本 $HOME; a & b # (x)'  # sqlite takes what follows a ? for options, alembic a % for its own
# MLflow's own SQL breaks on a working folder with both kinds of quotes; a # begins a folder inside a project
OF_PROJECT = "it's für 日本; a & b (x)"
LONG = "folders below folders " * 10
TEXT = 'Für "Herrn O\'Neil" & Söhne; $(date) `id` %s {x} \\ 日本: - a # b\n' * 150
MODEL = "Schlaganfall v1.0 - test"
EXPERIMENT = "Studie \"ü\" 'x' 日本; $HOME"


class Place:
    """A copy of the project, its store and its data, each in a folder with an awkward name."""

    def __init__(self, home):
        self.project = copy_project(home / LONG / OF_PROJECT)
        self.store = home / LONG / f"store {IN_URIS}"
        self.data = write_folder(home / LONG / f"data {AWKWARD}", cases=12)
        self.outputs = home / LONG / f"outputs {AWKWARD}"
        self.uri = f"sqlite:///{self.store / 'mlflow.db'}"
        self.store.mkdir()
        self.knobs = {
            "data.format": "folder",
            "data.root": str(self.data),
            "registry.model_name": MODEL,
            "tracking.experiment": EXPERIMENT,
            "tracking.run_name": "Lauf \"1\"; $HOME für '日本'",
            "tracking.outputs": str(self.outputs),
            "card.limits": TEXT,
            "card.authors": 'Jürgen O\'Neil "J" <j@example.org>',
            **dict(option.removeprefix("--").split("=", 1) for option in TINY),
        }

    def run(self, *arguments):
        """What came of a command in the project's folder."""
        return run(self.project, *arguments, MLFLOW_TRACKING_URI=self.uri, SEGPIPE_CACHE=str(self.outputs / "cache"))

    def options(self):
        return [f"--{name}={value}" for name, value in self.knobs.items()]

    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def runs(self, step):
        """Finished runs of a step, newest first."""
        client = self.client()
        found = client.get_experiment_by_name(EXPERIMENT)
        query = f"tags.`segpipe.step` = '{step}' and attributes.status = 'FINISHED'"
        return client.search_runs([found.experiment_id], query)


def run(project, *arguments, **environment):
    """What came of a command in a project's folder, in an environment that says nothing of MLflow by itself."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env=kept | {"MLFLOW_DISABLE_TELEMETRY": "true", "PATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("awkward"))


@pytest.fixture(scope="module")
def chain(place):
    done = place.run("pipeline.py", *place.options())
    assert done.returncode == 0, done.stderr
    return done


def test_a_step_takes_any_name_of_project_store_data_and_knob(place):
    done = place.run("-m", "steps.preprocess", *place.options())
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (run,) = place.runs("preprocess")
    assert len(str(place.project)) > 200
    assert run.data.params["cfg.data.root"] == str(place.data)
    assert run.data.params["cfg.card.authors"] == place.knobs["card.authors"]
    (array,) = place.store.rglob("train_images.npy")
    (recipe,) = place.store.rglob("resolved.yaml")
    assert run.info.run_id in array.parts
    assert settings.load(recipe, {}) == settings.load(None, place.knobs)
    assert list(place.project.rglob("*.db")) == []


def test_mlflow_run_and_the_driver_have_one_store_in_a_folder_with_a_space(tmp_path):
    project, raw = copy_project(tmp_path / "seg pipe"), write_folder(tmp_path / "raw data")
    knobs = {"data.format": "folder", "data.root": str(raw), "preprocess.size": "32"}
    given = [part for name, value in knobs.items() for part in ("-P", f"{name}={value}")]
    for _ in range(2):  # with a store that is made, and with one that is there
        first = run(project, "-m", "mlflow", "run", ".", "-e", "preprocess", "--env-manager", "local", *given)
        assert first.returncode == 0, first.stderr
    words = [f"--{name}={value}" for name, value in knobs.items()]
    second = run(project, "pipeline.py", "--plan.auto=false", "--until=preprocess", *words)
    assert second.returncode == 0, second.stderr
    assert "preprocess: reuse " in second.stderr
    assert list(tmp_path.rglob("*.db")) == [project / "mlflow.db"]
    assert {path.relative_to(project).parts[0] for path in tmp_path.rglob("manifest.json")} == {"mlruns"}
    assert [path for path in tmp_path.rglob("*") if "%" in path.name and any(path.iterdir())] == []


def test_a_config_of_more_than_6000_characters_is_read_back_as_it_was(tmp_path):
    classes = [f"Gefäß {n} 'o' \"q\" 日本" for n in range(1, 251)]
    knobs = {"data.format": "folder", "data.classes": ",".join(classes), "card.limits": TEXT, "card.references": TEXT}
    config = settings.load(None, knobs)
    recipe = tmp_path / f"{IN_URIS}.yaml"
    recipe.write_text(settings.dump(config), encoding="utf-8")
    assert len(recipe.read_text(encoding="utf-8")) > 20_000
    assert settings.load(recipe, {}) == config
    assert config.data.classes == tuple(classes)
    assert config.card.limits == TEXT


@pytest.mark.slow
def test_the_chain_ends_with_a_champion_whose_card_says_all_that_was_given(place, chain):
    assert f"Champion: {MODEL} version 1" in chain.stdout
    version = place.client().get_model_version_by_alias(MODEL, "champion")
    assert 'Für "Herrn O\'Neil" & Söhne; $(date)' in version.description
    (train,) = place.runs("train")
    assert train.info.run_name == place.knobs["tracking.run_name"]
    assert train.data.params["cfg.card.limits"] == TEXT[:6000]
    assert list(place.store.rglob("weights.safetensors"))
    assert not (place.project / "outputs").exists()


@pytest.mark.slow
def test_mlflow_run_with_the_same_knobs_reuses_everything(place, chain):
    given = [part for name, value in place.knobs.items() for part in ("-P", f"{name}={value}")]
    done = place.run("-m", "mlflow", "run", ".", "--env-manager", "local", "--experiment-name", EXPERIMENT, *given)
    assert done.returncode == 0, done.stderr
    for step in ("preprocess", "train", "evaluate", "register"):
        assert f"{step}: reuse" in done.stderr


@pytest.mark.slow
def test_what_it_prints_for_a_shell_works_in_a_shell(place, chain):
    request = chain.stdout.partition("Ask it:\n")[2].partition("|")[0]
    sent = subprocess.run(["bash", "-euc", request], capture_output=True, text=True, check=True)
    assert sent.stdout.startswith('{"dataframe_records":[{"image":"iVBOR')
    shown = place.run("-m", "steps.lineage", f"models:/{MODEL}@champion", "--verify")
    assert shown.returncode == 0, shown.stderr
    assert ", 0 differs, 0 gone" in shown.stderr
