"""What `pipeline.py --plan` says of a finished chain after each kind of change, and that it is what then happens."""

import json
import subprocess
import sys

import pytest
from conftest import TINY, copy_project, write_folder

from segpipe.files.project import PROJECT

MODEL = "planned"
STEPS = ("preprocess", "train", "evaluate", "register")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("raw data") / "pictures", cases=9)


@pytest.fixture(scope="module")
def knobs(raw, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    data = ["--data.format=folder", f"--data.root={raw}", f"--tracking.outputs={outputs}"]
    return [*data, f"--registry.model_name={MODEL}", *TINY, "--train.epochs=1"]


@pytest.fixture(scope="module")
def chain(store, knobs):
    """A finished chain; gives the words of its command line to further ones."""
    done = pipeline(*knobs, "--in-process", "--run-name=the first one")
    assert done.returncode == 0, done.stderr
    return knobs


def pipeline(*words, project=PROJECT):
    program = [sys.executable, "pipeline.py", *words]
    return subprocess.run(program, cwd=project, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def planned(chain, capsys):
    """The plan's line for each step, in this process."""

    def ask(*words):
        import pipeline as module

        capsys.readouterr()
        module.command().main([*chain, "--plan", *words])
        return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())

    return ask


def touched(path):
    with path.open("a") as file:
        file.write("\n")


def changed(path):
    with path.open("a") as file:
        file.write("\nNEW = 1\n")


def finished(step):
    from segpipe.tracking import runs

    return runs.finished(step)


def runs_in_store():
    from segpipe.tracking import runs

    client = runs.MlflowClient()
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def test_with_nothing_changed_every_step_is_reused_and_nothing_is_run(planned):
    before = len(runs_in_store())
    assert planned() == {step: f"reuse {finished(step)[0].info.run_id}" for step in STEPS}
    assert len(runs_in_store()) == before


def test_a_changed_knob_is_named_with_both_values(planned):
    lines = planned("--train.lr=0.01")
    assert lines["preprocess"].startswith("reuse ")
    assert lines["train"] == "run: because train.lr 0.001 -> 0.01"
    assert lines["evaluate"] == "run: because train changed"
    assert lines["register"] == "run: because evaluate changed"


def test_changed_raw_files_are_counted_and_named(planned, raw):
    saved = {path: path.read_bytes() for path in (raw / "images").glob("case[012].png")}
    try:
        for path in saved:
            path.write_bytes(saved[sorted(saved)[0]])
        (raw / "images" / "case2.png").unlink()
        (raw / "images" / "another.png").write_bytes(saved[sorted(saved)[0]])
        said = planned()["preprocess"]
    finally:
        (raw / "images" / "another.png").unlink()
        for path, content in saved.items():
            path.write_bytes(content)
    assert said == (
        "run: because 1 raw file changed: images/case1.png, "
        "1 raw file added: images/another.png, 1 raw file removed: images/case2.png"
    )
    assert planned()["preprocess"].startswith("reuse ")


def test_changed_code_and_requirements_are_named_and_only_what_imports_them_runs(chain, tmp_path):
    copy = copy_project(tmp_path / "a copy")
    touched(copy / "README.md")
    changed(copy / "segpipe" / "models" / "losses.py")
    lines = dict(line.split(": ", 1) for line in pipeline(*chain, "--plan", project=copy).stdout.splitlines())
    assert lines["preprocess"].startswith("reuse ")
    assert lines["train"] == "run: because segpipe/models/losses.py changed"
    pins = (copy / "requirements.txt").read_text(encoding="utf-8")
    (copy / "requirements.txt").write_text(pins.replace("click==", "click==0."), encoding="utf-8")
    said = pipeline(*chain, "--plan", "--until=preprocess", project=copy).stdout
    assert said.startswith("preprocess: run: because click ")


def test_a_damaged_artifact_is_named_and_its_step_runs_again(planned):
    from segpipe.tracking import artifacts

    array = artifacts.local(f"runs:/{finished('preprocess')[0].info.run_id}/dataset") / "train_images.npy"
    whole = array.read_bytes()
    try:
        array.write_bytes(whole[:-1])
        assert planned()["preprocess"] == "run: because artifact dataset/train_images.npy is cut short"
        array.unlink()
        assert planned()["preprocess"] == "run: because artifact dataset/train_images.npy is missing"
    finally:
        array.write_bytes(whole)
    assert planned()["preprocess"].startswith("reuse ")


def test_a_champion_of_another_hand_makes_register_run(planned):
    from segpipe.tracking import runs

    client = runs.MlflowClient()
    client.delete_registered_model_alias(MODEL, "champion")
    try:
        assert planned()["register"] == "run: because the champion was version 1, now it is none"
    finally:
        client.set_registered_model_alias(MODEL, "champion", "1")


def test_parts_of_the_chain_can_be_asked_for(planned):
    assert list(planned("--until=train")) == ["preprocess", "train"]
    lines = planned("--fresh=evaluate")
    assert lines["train"].startswith("reuse ")
    assert lines["evaluate"] == lines["register"] == "run: because it was asked for"
    assert set(planned("--fresh").values()) == {"run: because it was asked for"}


def test_a_run_that_was_deleted_is_told_and_what_was_built_on_it_is_not_taken(planned, command):
    from segpipe.tracking import runs

    client, run = runs.MlflowClient(), finished("train")[0].info.run_id
    told = f"run {run} was deleted; bring it back with: mlflow runs restore --run-id {run}"
    client.delete_run(run)
    lines, again = planned(), command("-m", "steps.evaluate", f"--train-run={run}")
    restored = command("-m", "mlflow", "runs", "restore", "--run-id", run)
    assert lines["preprocess"].startswith("reuse ")
    assert lines["train"] == f"run: because {told}"
    assert lines["evaluate"] == lines["register"] == f"run: because its train {told}"
    assert (again.returncode, again.stderr.splitlines()[-1]) == (1, f"segpipe evaluate: train_run={run}: {told}")
    assert restored.returncode == 0, restored.stderr
    assert [line.split()[0] for line in planned().values()] == ["reuse"] * 4


def test_a_deleted_dataset_is_told_for_all_that_was_made_from_it(planned):
    from segpipe.tracking import runs

    client, run = runs.MlflowClient(), finished("preprocess")[0].info.run_id
    client.delete_run(run)
    try:
        lines = planned()
        with pytest.raises(SystemExit):
            planned("--from=evaluate")
    finally:
        client.restore_run(run)
    assert all(f"run {run} was deleted" in line for line in lines.values())


@pytest.mark.parametrize("words", [[], ["compare"]])
@pytest.mark.parametrize("named_by", ["MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "the config"])
def test_a_deleted_experiment_is_refused_by_the_plan_as_by_the_chain(chain, words, named_by, monkeypatch, capsys):
    import pipeline as module
    from segpipe.tracking import experiments, runs

    client, name = runs.MlflowClient(), f"study {named_by} {len(words)}"
    experiment = experiments.ensure(name)
    client.delete_experiment(experiment)
    before = len(runs_in_store())
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    if named_by != "the config":
        monkeypatch.setenv(named_by, experiment if named_by.endswith("ID") else name)
    shown = []
    for more in (["--plan"], []):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            module.command().main([*words, *chain, f"--experiment={name}", *more])
        assert stopped.value.code == 1
        shown.append(capsys.readouterr().err.splitlines()[-1])
    assert shown[0] == shown[1]
    assert f"experiment {name} was deleted; bring it back with: mlflow experiments restore" in shown[0]
    assert f"--experiment-id {experiment};" in shown[0]
    assert len(runs_in_store()) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--from=train", "--data.classes=vessel"], "--from train: no finished run of preprocess fits"),
        (["--from=evaluate", "--until=train"], "must come in the order"),
        (["compare", "--from=train"], "--then says how far it goes"),
        (["--in-process", "--compare.parallel=2"], "--in-process runs one step after the other"),
        (["--backend=nowhere"], "nowhere"),
        (["--backend-config=/nowhere/x.json"], "/nowhere/x.json"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_a_line(chain, words, told, capsys):
    import pipeline as module

    before = len(runs_in_store())
    with pytest.raises(SystemExit) as stopped:
        module.command().main([*chain, *words, "--plan"])
    assert stopped.value.code in (1, 2)
    shown = capsys.readouterr().err.strip()
    assert told in shown
    assert "\n" not in shown
    assert len(runs_in_store()) == before


def test_a_reused_step_appears_under_the_parent_and_links_to_its_run(chain):
    done = pipeline(*chain, "--run-name=again")
    assert done.returncode == 0, done.stderr
    assert "run: because" not in done.stderr
    everything = runs_in_store()
    (parent,) = [run for run in everything if run.info.run_name == "again"]
    nested = [run for run in everything if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    sources = {finished(step)[0].info.run_id for step in STEPS}
    assert {run.data.tags["segpipe.reuses"] for run in nested} == sources
    for run in nested:
        assert run.info.status == "FINISHED"
        assert f"/runs/{run.data.tags['segpipe.reuses']})" in run.data.tags["mlflow.note.content"]
        assert run.data.tags["segpipe.because"] == f"reuse {run.data.tags['segpipe.reuses']}"


def test_earlier_steps_are_taken_as_they_are_where_only_their_code_changed(chain, tmp_path):
    from segpipe.tracking import artifacts

    copy = copy_project(tmp_path / "a copy")
    changed(copy / "segpipe" / "data" / "splits.py")
    said = pipeline(*chain, "--plan", "--from=train", project=copy).stdout.splitlines()
    run = finished("preprocess")[0].info.run_id
    assert said[0] == f"preprocess: reuse {run} as it is, although segpipe/data/splits.py changed"
    assert said[1].startswith("train: ")
    made_of = json.loads(artifacts.local(f"runs:/{run}/config/made_of.json").read_text(encoding="utf-8"))
    assert set(made_of) == {"code", "requirements", "raw data"}
    assert len(made_of["raw data"]) == 18


def test_earlier_steps_that_fit_together_are_found_behind_newer_ones_that_do_not(planned):
    from segpipe.tracking import run_tags, runs

    client, others = runs.MlflowClient(), []

    def copy_of(step, **tags):
        run = finished(step)[0]
        made = client.create_run(run.info.experiment_id, tags=run.data.tags | tags)
        client.log_batch(made.info.run_id, params=[runs.Param(*knob) for knob in run.data.params.items()])
        client.set_terminated(made.info.run_id)
        others.append(made.info.run_id)
        return made.info.run_id

    train, preprocess = (finished(step)[0].info.run_id for step in ("train", "preprocess"))
    parts = json.loads(finished("preprocess")[0].data.tags[run_tags.PARTS])
    other = copy_of("preprocess", **{run_tags.PARTS: json.dumps(parts | {"raw data": "another"})})
    copy_of("train", **{run_tags.INPUT + "preprocess": other})
    copy_of("train", **{run_tags.INPUT + "preprocess": "gone"})
    try:
        lines = planned("--from=evaluate")
    finally:
        for run_id in others:
            client.delete_run(run_id)
    assert lines["preprocess"] == f"reuse {preprocess}"
    assert lines["train"] == f"reuse {train}"


def test_a_training_that_was_deleted_is_done_again_and_evaluated_again(chain, planned):
    from segpipe.tracking import run_tags, runs

    old = finished("train")[0].info.run_id
    runs.MlflowClient().delete_run(old)
    done = pipeline(*chain, "--in-process")
    assert done.returncode == 0, done.stderr
    new = {step: finished(step)[0] for step in STEPS}
    assert "preprocess: reuse" in done.stderr
    assert new["train"].info.run_id != old
    assert new["evaluate"].data.tags[run_tags.INPUT + "train"] == new["train"].info.run_id
    assert new["register"].data.tags[run_tags.INPUT + "evaluate"] == new["evaluate"].info.run_id
    assert planned() == {step: f"reuse {run.info.run_id}" for step, run in new.items()}
