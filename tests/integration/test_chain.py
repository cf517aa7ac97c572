"""The whole chain through MLflow Projects, on a real store, and the model it promotes behind a real server."""

import base64
import gzip
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nibabel as nib
import numpy as np
import pytest
from conftest import TINY, write_nifti

from segpipe.data import codecs
from segpipe.files.project import PROJECT

MODEL = "volumes"
CUBE = base64.b64encode(codecs.encode_nifti(np.zeros((8, 8, 2), np.float32), np.eye(4))).decode()
PIXEL = base64.b64encode(codecs.encode_picture(np.zeros((8, 8), np.uint8))).decode()


@pytest.fixture(scope="module")
def chain(store, tmp_path_factory):
    """One run of the chain on small volumes: its data folder and what it printed."""
    root = write_nifti(tmp_path_factory.mktemp("data") / "raw data", cases=6)
    arguments = ["--data.format=nifti", f"--data.root={root}", f"--registry.model_name={MODEL}", *TINY]
    arguments += ["--split.test=0.34", "--gate.alpha=0.3"]  # two patients can show no less than 1/4

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "pipeline.py", *arguments, *more]
        return subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False)

    done = run()
    assert done.returncode == 0, done.stderr
    return root, done, run


@pytest.fixture(scope="module")
def client(chain):
    from segpipe.tracking import connection, runs

    connection.connect()
    return runs.MlflowClient()


def runs(client, step):
    from segpipe.tracking import runs

    return runs.finished(step)


def champion(client):
    return client.get_model_version_by_alias(MODEL, "champion")


def test_it_prints_what_became_of_each_step_and_how_to_go_on(chain):
    _, done, _ = chain
    for step in ("preprocess", "train", "evaluate", "register"):
        assert re.search(rf"{step}.+[0-9a-f]{{32}}.+ s ", done.stdout), step
        assert f"{step}: run: because it has not run before" in done.stderr
        assert re.search(rf"{step}: ran [0-9a-f]{{32}} in [0-9.]+ s", done.stderr)
    assert "Champion: volumes version 1, test Dice" in done.stdout
    assert "mlflow models serve -m models:/volumes@champion" in done.stdout
    assert "curl" in done.stdout


def test_steps_are_nested_under_one_parent_and_hand_on_run_ids(chain, client):
    parent = runs(client, "pipeline")[-1]
    ids = {}
    for step in ("preprocess", "train", "evaluate", "register"):
        run = runs(client, step)[-1]
        ids[step] = run.info.run_id
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["segpipe.because"] == "it has not run before"
        assert run.data.params["cfg.train.epochs"] == "2"
    assert runs(client, "train")[-1].data.tags["segpipe.input.preprocess"] == ids["preprocess"]
    assert runs(client, "register")[-1].data.tags["segpipe.input.evaluate"] == ids["evaluate"]


def test_metrics_have_the_names_others_script_against(chain, client):
    train, evaluate = runs(client, "train")[-1], runs(client, "evaluate")[-1]
    losses = ["train_loss", "train_dice", "val_loss", "val_dice"]
    names = [*losses, "learning_rate", "epoch_time_seconds", "overfitting_gap"]
    for name in names:
        history = client.get_metric_history(train.info.run_id, name)
        assert [point.step for point in history] == [0, 1], name
    for name in ("test_dice", "test_iou", "test_precision", "test_recall"):
        low, mean, high = (evaluate.data.metrics[n] for n in (f"{name}_ci_low", name, f"{name}_ci_high"))
        assert low <= mean <= high


def test_test_metrics_are_tied_to_the_model_and_the_dataset(chain, client):
    evaluate = runs(client, "evaluate")[-1]
    model = client.get_logged_model(evaluate.data.tags["segpipe.model_id"])
    (dice,) = [m for m in model.metrics if m.key == "test_dice"]
    assert dice.dataset_digest == champion(client).tags["test_digest"]
    as_trained = evaluate.data.metrics["threshold"] == 0.5
    assert model.source_run_id == runs(client, "train" if as_trained else "evaluate")[-1].info.run_id


def test_the_dataset_is_stored_once_and_nothing_is_left_half_written(chain, client, store):
    run_id = runs(client, "preprocess")[-1].info.run_id
    arrays = [p for p in store.rglob("train_images.npy") if run_id in p.parts]
    assert len(arrays) == 1
    assert list(store.rglob("*.partial*")) == []


def test_the_version_remembers_where_it_came_from(chain, client):
    tags = champion(client).tags
    for step in ("preprocess", "train", "evaluate"):
        assert tags[f"{step}_run"] == runs(client, step)[-1].info.run_id
    assert re.fullmatch(r"[0-9a-f]{40}", tags["git_commit"])
    assert float(tags["test_dice_ci_low"]) <= float(tags["test_dice"])


def test_evaluation_leaves_a_table_a_summary_and_pictures(chain, client):
    from segpipe.evaluation.summary import Summary
    from segpipe.tracking import artifacts

    folder = artifacts.local(f"runs:/{runs(client, 'evaluate')[-1].info.run_id}/evaluation")
    summary = Summary.read(folder)
    assert "left out of the mean" in summary.convention
    assert summary.metrics["dice"].n_valid <= summary.metrics["dice"].n
    tables = {"cases.csv", "lesions.csv", "look_first.csv", "subgroups.csv", "sweep.csv", "failures.csv"}
    assert {p.name for p in folder.iterdir()} >= {"summary.json", "report.html", "model_card.md", *tables}
    assert {p.name for p in (folder / "plots").iterdir()} >= {"distributions.png", "sweep.png", "lineage.png"}
    assert "Look at these first" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_second_run_reuses_everything(chain):
    _, _, run = chain
    again = run()
    assert again.returncode == 0
    for step in ("preprocess", "train", "evaluate", "register"):
        assert f"{step}: reuse " in again.stderr


def test_a_changed_knob_runs_what_depends_on_it_and_says_so(chain, client):
    _, _, run = chain
    changed = run("--evaluate.threshold=0.4")
    assert changed.returncode == 0, changed.stderr
    assert "train: reuse " in changed.stderr
    assert "evaluate: run: because evaluate.threshold auto -> 0.4" in changed.stderr
    evaluate = runs(client, "evaluate")[0]
    model = client.get_logged_model(evaluate.data.tags["segpipe.model_id"])
    assert model.source_run_id == evaluate.info.run_id


def test_an_entry_point_alone_finds_what_it_needs(chain):
    root, _, _ = chain
    given = (*TINY, "--data.format=nifti", f"--data.root={root}", "--split.test=0.34")
    knobs = [f"-P{knob.removeprefix('--')}" for knob in given]
    program = [
        "mlflow",
        "run",
        ".",
        "-e",
        "evaluate",
        "--env-manager",
        "local",
        *knobs,
        "-Pevaluate.threshold=0.3",
    ]
    done = subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "epoch 1" not in done.stderr


@pytest.fixture(scope="module")
def server(chain, tmp_path_factory):
    """`mlflow models serve` of the champion, started where the project is not."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    program = [
        "mlflow",
        "models",
        "serve",
        "-m",
        f"models:/{MODEL}@champion",
        "--env-manager",
        "local",
        "-p",
        str(port),
    ]
    with (elsewhere / "log").open("w") as log:
        process = subprocess.Popen(program, cwd=elsewhere, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(120):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1).read()
                    break
                except OSError:
                    assert process.poll() is None, (elsewhere / "log").read_text()
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(process.pid, 15)
            process.wait(30)


def post(url, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def record(root, case="sub-case0"):
    folder = root / case / "ses-0001" / "dwi"
    return {c: base64.b64encode((folder / f"{case}_ses-0001_{c}.nii.gz").read_bytes()).decode() for c in ("dwi", "adc")}


def test_served_mask_is_the_evaluated_mask_on_the_files_own_grid(chain, client, server):
    from segpipe.inference.predictor import Predictor
    from segpipe.recording import logged_models

    root, _, _ = chain
    status, answer = post(server, {"dataframe_records": [record(root), record(root, "sub-case1")]})
    assert status == 200
    assert len(answer["predictions"]) == 2
    row = answer["predictions"][0]

    path = root / "sub-case0/ses-0001/dwi/sub-case0_ses-0001_dwi.nii.gz"
    original, served = nib.load(path), nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(row["mask"])))
    assert served.shape == original.shape
    np.testing.assert_allclose(served.affine, original.affine)

    predictor = Predictor.load(logged_models.folder(f"models:/{MODEL}@champion"))
    files = [codecs.decode(base64.b64decode(record(root)[c]), c) for c in ("dwi", "adc")]
    segmentation = predictor.segment(np.concatenate([f.array for f in files]), predictor.spec.threshold)
    assert base64.b64decode(row["mask"]) == codecs.encode_mask(segmentation.mask, files[0], 1)
    assert row["foreground_voxels"] == int(segmentation.mask.sum())
    assert row["foreground_ml"] == pytest.approx(row["foreground_voxels"] * 0.02)
    assert row["max_probability"] == pytest.approx(float(segmentation.foreground.max()), abs=1e-6)


def test_the_threshold_is_a_parameter_of_the_request(chain, server):
    root, _, _ = chain
    counts = []
    for threshold in (0.001, 0.5, 0.999):
        _, answer = post(server, {"dataframe_records": [record(root)], "params": {"threshold": threshold}})
        counts.append(answer["predictions"][0]["foreground_voxels"])
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 3 * 40 * 36


def test_a_stack_of_channels_is_as_good_as_two_files(chain, server):
    root, _, _ = chain
    both = [nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(v))) for v in record(root).values()]
    stack = nib.Nifti1Image(np.stack([np.asarray(b.dataobj) for b in both], axis=-1), both[0].affine)
    image = base64.b64encode(gzip.compress(stack.to_bytes())).decode()
    _, answer = post(server, {"dataframe_records": [{"image": image}]})
    _, expected = post(server, {"dataframe_records": [record(root)]})
    assert answer["predictions"] == expected["predictions"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"dataframe_records": [{"dwi": "!"}]}, "row 0: dwi: not base64"),
        ({"dataframe_records": [{"dwi": "aGVsbG8="}]}, "row 0: dwi: not a PNG"),
        ({"dataframe_records": [{"image": CUBE}]}, "row 0: 1 channels, the model takes 2"),
        ({"dataframe_records": [{"image": PIXEL}]}, "row 0: image: a picture; this model takes volumes: NIfTI"),
        ({"dataframe_records": [{"dwi": PIXEL, "adc": PIXEL}]}, "row 0: dwi: expected a NIfTI file with one volume"),
        ({"dataframe_records": [{"wrong": "x"}]}, "unknown column 'wrong'; this model takes dwi, adc, image, spacing"),
        ({"dataframe_records": [{"image": "x"}], "params": {"threshold": 2}}, "threshold 2.0 is not between"),
    ],
)
def test_a_bad_request_is_answered_with_400_and_the_row(server, body, told):
    status, answer = post(server, body)
    assert status == 400
    assert told in answer["message"]
    assert "Traceback" not in json.dumps(answer)


@pytest.mark.slow
def test_a_better_model_takes_over_and_the_old_one_stays_as_previous(chain, client):
    _, _, run = chain
    name = "taken over"
    found = []
    for knobs in (["--train.lr=1e-7"], ["--train.lr=0.01", "--train.epochs=12"]):
        done = run(f"--registry.model_name={name}", *knobs)
        assert done.returncode == 0, done.stderr
        found.append(client.get_model_version_by_alias(name, "champion"))
    before, after = found
    assert (str(before.version), str(after.version)) == ("1", "2")
    assert str(client.get_model_version_by_alias(name, "previous").version) == "1"
    assert float(after.tags["test_dice"]) > float(before.tags["test_dice"])


def test_on_a_new_test_set_the_champion_is_measured_again_without_patients_it_has_seen_and_stays(chain, client):
    from segpipe.data.dataset import Dataset
    from segpipe.tracking import artifacts

    _, _, run = chain
    before = champion(client)
    known = Dataset.open(artifacts.local(f"runs:/{before.tags['preprocess_run']}/dataset")).manifest
    done = run("--seed=1", "--split.test=0.5", "--train.epochs=1", "--train.lr=0.0001")
    assert done.returncode == 0, done.stderr
    assert "champion: 3/3" in done.stderr
    assert champion(client).version == before.version
    challenger, run_id = client.get_model_version_by_alias(MODEL, "challenger"), runs(client, "register")[0].info.run_id
    assert int(challenger.version) > int(before.version)
    decision = json.loads(artifacts.local(f"runs:/{run_id}/register/decision.json").read_text())
    assert (decision["promote"], decision["rule"]) == (False, "superiority")
    assert "not shown to be better" in decision["reasons"][0]
    fresh = Dataset.open(artifacts.local(f"runs:/{runs(client, 'preprocess')[0].info.run_id}/dataset")).manifest
    seen = {case.patient for split in ("train", "val") for case in known.of(split)}
    unseen = [case for case in fresh.of("test") if case.patient not in seen]
    assert 0 < len(unseen) < 3
    assert any(f"on {len(unseen)} of 3 cases" in comparison["detail"] for comparison in decision["comparisons"])
