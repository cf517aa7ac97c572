"""A champion's lineage and its reproduction, after one tiny chain on a real store."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import TINY, write_nifti

from segpipe.files.project import PROJECT

pytestmark = pytest.mark.slow

MODEL = "reproduced"
COMMIT = "0123456789abcdef" * 2 + "01234567"
URI = f"models:/{MODEL}@champion"
STEPS = ("preprocess", "train", "evaluate")


def pipeline(*arguments):
    program = [sys.executable, "pipeline.py", *arguments]
    return subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def chain(store, tmp_path_factory):
    """The chain run once on small volumes: its raw data and its arguments."""
    root = write_nifti(tmp_path_factory.mktemp("data") / "raw data", cases=6)
    arguments = ["--data.format=nifti", f"--data.root={root}", f"--registry.model_name={MODEL}", *TINY]
    done = pipeline(*arguments)
    assert done.returncode == 0, done.stderr
    return root, arguments


@pytest.fixture(scope="module")
def client(chain):
    from segpipe.tracking import connection, runs

    connection.connect()
    return runs.MlflowClient()


@pytest.fixture(scope="module")
def again(chain, client):
    """The champion reproduced: the registry before and after, what was printed, and the scratch experiment."""
    before = registry(client)
    done = pipeline("reproduce", URI)
    return before, registry(client), done, client.get_experiment_by_name("segpipe-reproduce")


def registry(client):
    """Everything the registry says of the model."""
    model = client.get_registered_model(MODEL)
    versions = client.search_model_versions(f"name = '{MODEL}'")
    return {**model.aliases}, [(v.version, v.source, v.last_updated_timestamp, v.tags) for v in versions]


@pytest.fixture
def tell(chain, capfd):
    """Run `steps.lineage` in this process: its exit code, stdout and stderr."""
    from steps.lineage import main

    def run(*arguments):
        capfd.readouterr()
        code = 0
        try:
            main.main([*arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capfd.readouterr()

    return run


def test_the_tree_and_the_json_show_the_chain(tell, client):
    code, tree, _ = tell(URI, "--files")
    told = json.loads(tell(URI, "--json")[1])
    assert code == 0
    tags = client.get_model_version_by_alias(MODEL, "champion").tags
    for step in STEPS:
        assert f"{step} {tags[f'{step}_run']}" in tree
    assert "sub-case5" in tree
    assert [node["kind"] for node in told["nodes"] if node["kind"] != "decision"] == [
        *("version", "evaluate", "train", "preprocess", "raw"),
    ]
    assert "0.00 MB" not in tree


def test_a_fresh_chain_verifies(tell):
    code, out, err = tell(URI, "--json", "--verify")
    checks = json.loads(out)["checks"]
    assert code == 0, checks
    assert {check["state"] for check in checks} == {"ok"}
    assert {"weights: the training's own", "dataset test_images.npy", "raw files"} <= {c["item"] for c in checks}
    assert "0 differs, 0 gone" in err


def test_a_changed_raw_file_is_told(tell, chain):
    path = next(chain[0].glob("sub-case3/**/*_adc.nii.gz"))
    other = next(chain[0].glob("sub-case4/**/*_adc.nii.gz"))
    kept = path.read_bytes()
    shutil.copyfile(other, path)
    try:
        code, out, err = tell(URI, "--verify")
    finally:
        path.write_bytes(kept)
    assert code == 1
    assert "5 of 6 cases" in out
    assert "items differ: raw case sub-case3" in err


def test_a_deleted_run_is_told(tell, client):
    run_id = client.get_model_version_by_alias(MODEL, "champion").tags["train_run"]
    client.delete_run(run_id)
    try:
        code, out, err = tell(URI, "--verify")
    finally:
        client.restore_run(run_id)
    assert code == 0
    assert "state: deleted" in out
    assert "1 gone" in err


def test_a_model_that_is_not_there_is_one_line(tell):
    code, out, err = tell("models:/nobody@champion")
    assert (code, out) == (1, "")
    assert len(err.strip().splitlines()) == 1


def test_a_champion_is_reproduced_to_the_bit(again, client):
    from segpipe.tracking import artifacts

    _, _, done, scratch = again
    assert done.returncode == 0, done.stderr
    assert "bit-identical" in done.stdout
    (parent,) = client.search_runs([scratch.experiment_id], "tags.`segpipe.step` = 'reproduce'")
    assert parent.data.tags["segpipe.verdict"] == "bit-identical"
    report = json.loads(artifacts.local(f"runs:/{parent.info.run_id}/reproduction/report.json").read_text())
    assert report["weights"]["recorded"] == report["weights"]["reproduced"]
    assert report["cases"]["difference"] == 0
    assert report["metrics"]["dice"]["difference"] == 0
    for step in STEPS:
        run = client.get_run(report["runs"][step]["reproduced"])
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.experiment_id == scratch.experiment_id
        assert run.info.run_id != report["runs"][step]["recorded"]


def test_the_registry_stays_as_it_was(again):
    before, after, _, _ = again
    assert before == after


def test_the_next_chain_builds_on_the_old_runs(again, chain, client):
    done = pipeline(*chain[1])
    assert done.returncode == 0, done.stderr
    tags = client.get_model_version_by_alias(MODEL, "champion").tags
    for step in STEPS:
        assert f"{step}: reuse {tags[f'{step}_run']}" in done.stderr


def test_other_code_and_other_data_are_refused_before_anything_runs(chain, client, capfd):
    from pipeline import command
    from segpipe.tracking import run_tags

    root, _ = chain
    tags = client.get_model_version_by_alias(MODEL, "champion").tags
    parts = client.get_run(tags["train_run"]).data.tags[run_tags.PARTS]
    path = next(root.glob("sub-case3/**/*_adc.nii.gz"))
    kept, count = path.read_bytes(), len(client.search_runs([e.experiment_id for e in client.search_experiments()]))
    client.set_tag(tags["train_run"], run_tags.PARTS, json.dumps({**json.loads(parts), "code": "another"}))
    client.set_tag(tags["train_run"], "mlflow.source.git.commit", COMMIT)
    path.write_bytes(next(root.glob("sub-case4/**/*_adc.nii.gz")).read_bytes())
    try:
        with pytest.raises(SystemExit) as stop:
            command().main(["reproduce", URI])
    finally:
        client.set_tag(tags["train_run"], run_tags.PARTS, parts)
        path.write_bytes(kept)
    told = capfd.readouterr().err.splitlines()
    assert stop.value.code == 1
    assert told[0] == f"preprocess: 1 raw file changed: {path.relative_to(root)}"
    assert told[1].startswith("train: code another -> ")
    assert any(line.strip().startswith("git worktree add ") and line.endswith(COMMIT) for line in told)
    assert "preprocess, train can't be run as recorded" in told[-1]
    assert len(client.search_runs([e.experiment_id for e in client.search_experiments()])) == count
