"""What a user gets wrong: one line, a non-zero exit code, the run FAILED with the reason, nothing half-written."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import TINY, write_folder, write_nifti
from PIL import Image

from segpipe.files.project import PROJECT
from segpipe.runtime import devices


def spoil(root):
    (root / "images" / "case3.png").write_bytes(b"not a picture")


def empty_masks(root):
    for path in (root / "masks").iterdir():
        Image.new("L", (36, 40)).save(path)


def only_two(root):
    for index in range(2, 8):
        (root / "images" / f"case{index}.png").unlink()
        (root / "masks" / f"case{index}.png").unlink()


def torn_patient(root):
    rows = [f"case{i},p{i // 2},s,{'train' if i < 3 else 'test'}" for i in range(8)]
    (root / "cases.csv").write_text("\n".join(["case,patient,site,split", *rows]))


DATA = {
    "no such root": (lambda r: r.rename(r.parent / "gone"), "no such folder"),
    "mask missing": (lambda r: (r / "masks" / "case1.png").unlink(), "case1.png: no mask"),
    "not a picture": (spoil, "case3.png: not a PNG"),
    "all masks empty": (empty_masks, "all 8 masks are empty"),
    "two patients": (only_two, "2 patient(s): at least 3"),
    "patient on two sides": (torn_patient, "patient 'p1' is in both train and test"),
}


def newest(step):
    """The run started last, of one step or of any."""
    from segpipe.tracking import connection, runs

    connection.connect()
    client = runs.MlflowClient()
    found = client.search_runs(
        [e.experiment_id for e in client.search_experiments()],
        f"tags.`segpipe.step` = '{step}'" if step else "",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return found[0]


def one_line(text):
    lines = [line for line in text.splitlines() if line.startswith("segpipe ")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


@pytest.mark.parametrize("name", DATA)
def test_bad_data_fails_the_run_with_its_reason_and_leaves_no_dataset(name, folder, step, store):
    damage, told = DATA[name]
    damage(folder)
    code, shown = step("preprocess", "--data.format=folder", f"--data.root={folder}", *TINY)
    assert code == 1
    assert told in one_line(shown)
    run = newest("preprocess")
    assert run.info.status == "FAILED"
    assert told in run.data.tags["segpipe.reason"]
    assert list(store.rglob(f"{run.info.run_id}/artifacts/*dataset*")) == []


def test_several_faults_are_listed_and_the_run_has_their_number_and_the_first(folder, step):
    spoil(folder)
    (folder / "masks" / "case1.png").unlink()
    code, shown = step("preprocess", "--data.format=folder", f"--data.root={folder}", *TINY)
    assert code == 1
    assert "case1.png: no mask" in one_line(shown)
    listed = [line for line in shown.splitlines() if line.startswith("- ")]
    assert [told in line for told, line in zip(("case1.png: no mask", "case3.png: not a PNG"), listed, strict=True)]
    assert newest("preprocess").data.tags["segpipe.reason"].startswith("2 faults, the first: ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--train.epoch=3"], "--train.epochs"),
        (["--train.epochs=0"], "train.epochs=0: "),
        (["--augment.enabled=maybe"], "true|false"),
        (["--config=nowhere.yaml"], "nowhere.yaml: No such file"),
        (["--config", "--train.lr"], "lr"),
        (["stray"], "stray"),
        (["--no-mlflow", "--tracking.run_name=../.."], "tracking.run_name=../..: expected a name"),
    ],
)
def test_a_wrong_command_line_runs_nothing_and_exits_with_2(arguments, told, step):
    code, shown = step("train", *arguments)
    assert code == 2
    assert told in one_line(shown)


def test_a_name_that_is_a_path_is_refused_by_every_command(step):
    import pipeline

    for name in ("preprocess", "train", "evaluate", "register", "predict", "serve"):
        code, shown = step(name, "--tracking.run_name=/tmp/x")
        assert (name, code) == (name, 2)
        assert "tracking.run_name=/tmp/x: expected a name" in one_line(shown)
    with pytest.raises(SystemExit) as stopped:
        pipeline.command().main(["--tracking.run_name=/tmp/x", "--plan"])
    assert stopped.value.code == 2


ENCODER = "model.encoder=resnet81: unknown (nearest: resnet18)"
IMPOSSIBLE = [
    (["--model.encoder=resnet81"], ENCODER),
    (["--model.arch=pan", "--model.encoder=vgg16_bn"], "model.arch=pan model.encoder=vgg16_bn: "),
    (["--model.encoder=dpn92", "--model.encoder_weights=imagenet"], "there are none for dpn92"),
    (["--model.encoder_weights=/no/such/file.pt"], "file.pt: no such file"),
    (["--train.device=cuda"], "train.device=cuda: no GPU found"),
]


@pytest.fixture
def entered(step, capfd):
    """Run a command in this process: its exit code, stdout and stderr, and whether it has left no run."""
    import importlib

    from segpipe.tracking import connection, runs

    def count():
        client = runs.MlflowClient()
        return len(client.search_runs([e.experiment_id for e in client.search_experiments()]))

    def enter(module, *arguments):
        connection.connect()
        before = count()
        capfd.readouterr()
        found = importlib.import_module(module)
        command = found.command() if module == "pipeline" else found.main
        try:
            command.main(list(arguments))
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capfd.readouterr(), count() == before

    return enter


@pytest.mark.parametrize(("knobs", "told"), IMPOSSIBLE)
@pytest.mark.parametrize("words", [["pipeline"], ["pipeline", "--plan"], ["pipeline", "compare"], ["steps.train"]])
def test_what_can_not_be_had_is_told_before_the_first_step(words, knobs, told, entered, folder):
    if "cuda" in told and devices.driver_has_gpu():
        pytest.skip("this machine has a GPU")
    data = ["--data.format=folder", f"--data.root={folder}"]
    compared = ["--compare.archs=pan"] * ("compare" in words and "pan" in told)
    code, answer, shown, left_alone = entered(*words, *data, *knobs, *compared)
    assert (code, answer, left_alone) == (2, "", True)
    assert told in one_line(shown)


def test_each_encoder_of_a_comparison_is_judged(entered, folder):
    data = ["--data.format=folder", f"--data.root={folder}", "--compare.encoders=resnet18,resnet81"]
    code, _, shown, left_alone = entered("pipeline", "compare", *data)
    assert (code, left_alone) == (2, True)
    assert ENCODER in one_line(shown)


def test_a_chain_without_a_training_needs_no_encoder(entered, folder):
    data = ["--data.format=folder", f"--data.root={folder}", "--model.encoder=resnet81"]
    code, answer, _, _ = entered("pipeline", "--plan", "--plan.auto=false", "--until=preprocess", *data)
    assert (code, answer.count("\n")) == (0, 1)


def test_the_device_of_another_machine_is_not_judged_on_this_one(entered, folder, tmp_path):
    (tmp_path / "backend.json").write_text("{}")
    sent = ["--backend=databricks", f"--backend-config={tmp_path / 'backend.json'}"]
    data = ["--data.format=folder", f"--data.root={folder}", "--train.device=cuda"]
    code, answer, _, _ = entered("pipeline", "--plan", "--plan.auto=false", *sent, *data)
    assert (code, answer.count("run: because")) == (0, 4)


@pytest.fixture(scope="module")
def preprocessed(store, tmp_path_factory):
    """The data root of a finished preprocess run."""
    root = write_folder(tmp_path_factory.mktemp("data") / "raw")
    program = [sys.executable, "-m", "steps.preprocess", "--data.format=folder", f"--data.root={root}", *TINY]
    subprocess.run(program, cwd=PROJECT, check=True, capture_output=True, timeout=120)
    return root


def test_an_upstream_run_is_checked_before_anything_is_computed(preprocessed, step, store):
    finished = newest("preprocess").info.run_id
    arguments = ["--data.format=folder", f"--data.root={preprocessed}", *TINY]
    cases = {
        "0123456789abcdef0123456789abcdef": "not found",
        finished: "belongs to 'preprocess', not to 'train'",
    }
    for run_id, told in cases.items():
        code, shown = step("evaluate", f"--train-run={run_id}", *arguments)
        assert code == 1
        assert told in one_line(shown)
    code, _ = step("preprocess", "--data.format=folder", "--data.root=/no/such/folder", *TINY)
    assert code == 1
    code, shown = step("train", f"--preprocess-run={newest('preprocess').info.run_id}", *arguments)
    assert (code, "is FAILED, not FINISHED" in one_line(shown)) == (1, True)


@pytest.mark.slow
def test_given_runs_have_to_fit_together(preprocessed, step, command):
    arguments = ["--data.format=folder", f"--data.root={preprocessed}", *TINY]
    assert command("-m", "steps.train", *arguments).returncode == 0
    train = newest("train").info.run_id
    assert step("preprocess", *arguments, "--seed=1")[0] == 0
    other = newest("preprocess").info.run_id
    code, shown = step("evaluate", f"--train-run={train}", f"--preprocess-run={other}", *arguments)
    assert code == 1
    assert f"train_run={train} was built on preprocess run" in one_line(shown)
    assert command("-m", "steps.evaluate", f"--train-run={train}", *arguments).returncode == 0


def test_a_missing_artifact_is_not_taken_for_whole(preprocessed, step, store):
    run_id = newest("preprocess").info.run_id
    from segpipe.tracking import runs

    good = runs.finished("preprocess")[0].info.run_id
    (manifest,) = store.rglob(f"{good}/artifacts/dataset/manifest.json")
    hidden = manifest.rename(manifest.with_suffix(".hidden"))
    try:
        code, shown = step("train", f"--preprocess-run={good}", "--data.format=folder", *TINY)
    finally:
        hidden.rename(manifest)
    assert run_id
    assert code == 1
    assert "never finished" in one_line(shown)


def test_a_wrong_knob_under_mlflow_run_marks_the_run_failed_with_the_reason(store):
    program = [
        "mlflow",
        "run",
        ".",
        "-e",
        "train",
        "--env-manager",
        "local",
        "-P",
        "train.epochs=zero",
    ]
    done = subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "train.epochs=zero" in one_line(done.stderr)
    run = newest(None)
    assert run.info.status == "FAILED"
    assert "train.epochs=zero" in run.data.tags["segpipe.reason"]


def test_a_failing_step_stops_the_chain_and_both_runs_say_why(store, tmp_path):
    root = write_nifti(tmp_path / "raw")
    (root / "sub-case2/ses-0001/dwi/sub-case2_ses-0001_adc.nii.gz").write_bytes(b"\x1f\x8b broken")
    program = [sys.executable, "pipeline.py", "--data.format=nifti", f"--data.root={root}", *TINY]
    done = subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "segpipe pipeline: preprocess failed (run " in done.stderr
    for step in ("preprocess", "pipeline"):
        run = newest(step)
        assert run.info.status == "FAILED"
        assert "sub-case2_ses-0001_adc.nii.gz: not a complete NIfTI" in run.data.tags["segpipe.reason"]


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://user:secret@127.0.0.1:9", "does not answer"),
        ("sqlite:////no/such/folder/mlflow.db", "no such folder"),
    ],
)
def test_a_store_that_cannot_be_reached_is_named_without_its_password(uri, told, store):
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    program = [sys.executable, "-m", "steps.preprocess", *TINY]
    done = subprocess.run(
        program, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert told in one_line(done.stderr)
    assert "secret" not in done.stderr


def test_an_interrupt_ends_the_run_as_killed(store, tmp_path):
    root = write_folder(tmp_path / "raw", cases=20)
    arguments = ["--data.format=folder", f"--data.root={root}", *TINY, "--train.epochs=10000"]
    program = [sys.executable, "-m", "steps.train", *arguments]
    with subprocess.Popen(program, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                break
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        rest = process.stderr.read()
        assert process.wait(30) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 10
    assert "segpipe train: interrupted (SIGTERM)" in rest
    assert newest("train").info.status == "KILLED"
