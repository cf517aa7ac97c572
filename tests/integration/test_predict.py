"""The entry point `predict` as a user types it: runs, exit codes, kills, memory."""

import csv
import json
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, disc, wait_for, write_folder
from PIL import Image

from segpipe.files import inventory
from segpipe.files.project import PROJECT
from segpipe.prediction.results import Request

NAME = "predicted"
ARTIFACTS = {
    "comparisons",
    "inputs",
    "metadata",
    "outputs",
    "predictions.csv",
    "request.json",
    "summary.json",
    "summary.md",
}


@pytest.fixture(scope="module")
def model(store, tmp_path_factory):
    """A network with random weights as the champion of NAME; its ID."""
    import mlflow

    from segpipe.config import settings
    from segpipe.inference.predictor import Predictor
    from segpipe.inference.spec import ModelSpec
    from segpipe.models import architectures
    from segpipe.recording import logged_models
    from segpipe.registry import champions

    knobs = {"model.encoder": "tu-test_resnet", "model.encoder_depth": "3", "preprocess.size": "32"}
    config = settings.load(None, {"data.format": "folder", **knobs})
    spec = ModelSpec(
        model=config.model,
        preprocess=config.preprocess,
        kind="picture",
        channels=("grey",),
        classes=("foreground",),
        threshold=0.45,
    )
    weights = tmp_path_factory.mktemp("weights") / logged_models.ARTIFACT
    Predictor(spec, architectures.build(spec.model, 1, 1, seed=3)).save(weights)
    with mlflow.start_run(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow compares the columns of an example with a range
        model_id = logged_models.log(weights)
    champions.ensure_model(NAME)
    version = mlflow.MlflowClient().create_model_version(NAME, f"models:/{model_id}", model_id=model_id)
    mlflow.MlflowClient().set_registered_model_alias(NAME, champions.CHAMPION, version.version)
    return model_id


@pytest.fixture
def knobs(model, tmp_path):
    """What every command here says; the default recipe is the phantom's."""
    return [f"--registry.model_name={NAME}", f"--tracking.outputs={tmp_path / 'out puts'}"]


def newest():
    """The run of predict started last."""
    from segpipe.tracking import runs

    client = runs.MlflowClient()
    return client.search_runs(
        [e.experiment_id for e in client.search_experiments()],
        "tags.`segpipe.step` = 'predict'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )[0]


def results_of(tmp_path):
    """The one folder of results."""
    (found,) = (tmp_path / "out puts" / "predictions").iterdir()
    return found


def without_times(folder):
    """Every file's bytes; of metadata and table all but the seconds."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith((".", "summary"))):
        name = path.relative_to(folder).as_posix()
        if name.startswith("metadata/"):
            found[name] = json.loads(path.read_text()) | {"seconds": None}
        elif name == "predictions.csv":
            found[name] = [
                row | {"seconds": None} for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())
            ]
        else:
            found[name] = path.read_bytes()
    return found


def one_line(text):
    lines = [line for line in text.splitlines() if line.startswith("segpipe ")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def test_some_bad_files_are_exit_code_3_and_a_finished_run_with_all_results(folder, step, knobs, model, tmp_path):
    (folder / "images" / "case3.png").write_bytes(b"not a picture")
    Image.fromarray(np.stack([disc(40, 36, n)[0] for n in range(3)], axis=2)).save(folder / "images" / "case8.bmp")
    code, shown = step("predict", f"--predict.input={folder}", "--predict.threshold=0.4", *knobs)
    assert code == 3, shown
    assert "predict: 9/9 case8" in shown
    run, results = newest(), results_of(tmp_path)
    assert run.info.status == "FINISHED"
    values = run.data.metrics
    assert (values["files"], values["files_failed"], values["files_skipped"]) == (9, 1, 0)
    assert values["files_per_second"] == pytest.approx(9 / values["duration_seconds"])
    tags = run.data.tags
    assert (tags["mode"], tags["device"], tags["files_failed"]) == ("prediction", "cpu", "1")
    assert (tags["segpipe.model"], tags["segpipe.model_id"]) == (f"models:/{NAME}/1", model)
    assert len(tags["segpipe.weights_sha256"]) == 64
    assert tags["segpipe.figure"].startswith("8 of 9 segmented")
    assert run.data.params["cfg.predict.threshold"] == "0.4"

    from segpipe.tracking import locations

    kept = locations.local_root(run.info.artifact_uri) / "predictions"
    assert {path.name for path in kept.iterdir()} == ARTIFACTS | {inventory.FILE}
    assert {k: v for k, v in without_times(kept).items() if k != inventory.FILE} == without_times(results)
    assert (kept / "outputs" / "case0.png").samefile(results / "outputs" / "case0.png")
    told = json.loads((results / "summary.json").read_text())
    assert results.name == Request(**told["parameters"]).key
    assert told["failures"][0]["error"].endswith("case3.png: not a PNG, JPEG, TIFF, BMP, NIfTI or DICOM file")
    assert told["dice"]["n"] == 7
    code, shown = step("predict", f"--predict.input={folder}", "--predict.threshold=0.4", *knobs)
    assert (code, newest().data.metrics["files_skipped"]) == (3, 8)


def test_a_dataset_is_predicted_by_the_uri_of_its_run(folder, step, knobs, tmp_path):
    from segpipe.tracking import runs

    data = ["--data.format=folder", f"--data.root={folder}", *TINY]
    assert step("preprocess", *data)[0] == 0
    run_id = runs.finished("preprocess")[0].info.run_id
    code, shown = step("predict", f"--predict.input=runs:/{run_id}/dataset", *data, *knobs)
    assert code == 0, shown
    assert newest().data.metrics["files"] == 8
    assert newest().data.tags["segpipe.input.preprocess"] == run_id
    assert sorted(path.stem for path in (results_of(tmp_path) / "outputs").iterdir()) == [f"case{n}" for n in range(8)]


def test_when_every_file_is_bad_the_run_has_failed_with_the_first_reason(step, knobs, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(b"nothing")
    code, shown = step("predict", f"--predict.input={tmp_path / 'in'}", *knobs)
    assert code == 1
    assert "all 2 files failed; a: " in one_line(shown)
    assert newest().info.status == "FAILED"
    assert "a.png: not a" in newest().data.tags["segpipe.reason"]
    assert (results_of(tmp_path) / "predictions.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "predict.input: not given"),
        (["--predict.input=/no/such/folder"], "predict.input=/no/such/folder: no such file or folder"),
        (["--predict.input=.", "--predict.threshold=2"], "predict.threshold=2"),
        (["--predict.input=.", "--no-mlflow"], "predict needs MLflow"),
    ],
)
def test_a_wrong_knob_runs_nothing(arguments, told, step, store):
    code, shown = step("predict", *arguments)
    assert code == 2
    assert told in one_line(shown)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--registry.model_name=nobody"], "models:/nobody@champion: no such model or alias"),
        (["--predict.model=models:/predicted/7"], "models:/predicted/7: "),
        (["--predict.input=runs:/0123456789abcdef0123456789abcdef/dataset"], "runs:/0123456789abcdef"),
        (["--predict.input={empty}"], "nothing to segment"),
        (["--predict.output={folder}/out"], "lies inside predict.input"),
    ],
)
def test_what_cannot_begin_fails_the_run_in_one_line(arguments, told, step, knobs, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "folder": folder}
    given = [argument.format(**places) for argument in arguments]
    code, shown = step("predict", *knobs, f"--predict.input={folder}", *given)
    assert code == 1
    assert told in one_line(shown)
    assert newest().info.status == "FAILED"


def begun(root, knobs, outputs, cases):
    """A predict at work that has finished so many cases."""
    program = [sys.executable, "-m", "steps.predict", f"--predict.input={root}", *knobs]
    process = subprocess.Popen(program, cwd=PROJECT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for(process, lambda: len(list(outputs.glob("predictions/*/metadata/*.json"))) >= cases)
    return process


def test_killed_and_started_again_the_results_are_those_of_an_undisturbed_run(step, knobs, tmp_path):
    root = write_folder(tmp_path / "raw", cases=150)
    with begun(root, knobs, tmp_path / "out puts", 20) as process:
        process.kill()
    results = results_of(tmp_path)
    done = len(list((results / "metadata").iterdir()))
    assert 20 <= done < 150
    assert not (results / "predictions.csv").exists()
    code, shown = step("predict", f"--predict.input={root}", *knobs)
    assert code == 0, shown
    assert done - 1 <= newest().data.metrics["files_skipped"] <= done
    step("predict", f"--predict.input={root}", f"--predict.output={tmp_path / 'fresh'}", *knobs)
    assert without_times(results) == without_times(tmp_path / "fresh")


@pytest.mark.slow
def test_an_interrupt_ends_the_run_as_killed_and_keeps_what_is_done(step, knobs, tmp_path):
    root = write_folder(tmp_path / "raw", cases=150)
    with begun(root, knobs, tmp_path / "out puts", 5) as process:
        process.send_signal(signal.SIGTERM)
        _, shown = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert one_line(shown) == "segpipe predict: interrupted (SIGTERM)"
    assert newest().info.status == "KILLED"
    assert 5 <= len(list((results_of(tmp_path) / "metadata").glob("*.json"))) < 150


def anonymous_mb(process_id):
    """Memory of a process that no file backs, MB."""
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.slow
def test_memory_stays_flat_over_two_thousand_files(knobs, tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for number in range(2000):
        Image.fromarray(disc(64, 64, number % 50)[0]).save(root / f"{number:04}.png")
    seen = {}
    with begun(root, knobs, tmp_path / "out puts", 1) as process:
        while process.poll() is None:
            done = len(list((results_of(tmp_path) / "metadata").iterdir()))
            try:
                seen[done] = anonymous_mb(process.pid)
                process.wait(0.25)
            except (subprocess.TimeoutExpired, StopIteration, FileNotFoundError):
                continue
    assert process.returncode == 0
    early, late = ([mb for done, mb in seen.items() if low <= done < high] for low, high in ((200, 600), (1600, 2000)))
    sys.stdout.write(f"\n200..600 files: {max(early):.0f} MB, 1600..2000 files: {max(late):.0f} MB\n")
    assert max(late) < max(early) + 20
