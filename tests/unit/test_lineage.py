"""Where a model comes from, on a real store with runs made by hand."""

import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from conftest import network, new_session, training_set
from rich.console import Console

from segpipe.config import settings
from segpipe.errors import InputError
from segpipe.files import hashes
from segpipe.metrics.statistics import Interval
from segpipe.orchestration import reproduce, verification
from segpipe.orchestration.keys import FORMAT
from segpipe.orchestration.reproduce import IDENTICAL, REFUTED, TOLERATED, Pair, Report
from segpipe.orchestration.step_table import STEPS
from segpipe.tracking import experiments, lineage, run_tags, runs
from steps import lineage_tree

MODEL = "by hand"
SESSION = new_session()
DECISION = {
    "decision": "promoted",
    "decision_rule": "superiority",
    "decision_reason": "first model",
    "decided_by": "gate",
    "decided_at": "2026-01-02 03:04:05 UTC",
}


@pytest.fixture(scope="module")
def made(store, tmp_path_factory):
    """A small dataset, the runs of a chain on it, and two versions of its model: the second without a decision."""
    from mlflow import MlflowClient

    config, manifest, folder = training_set(tmp_path_factory.mktemp("made"))
    client, experiment = MlflowClient(), experiments.ensure("by hand")
    digests = {"dataset_digest": manifest.digest, "test_digest": manifest.test_digest}
    more = {"preprocess": digests, "train": {}, "evaluate": {}, "register": {}}
    ids = {}
    for step, tags in more.items():
        inputs = {f"input.{i}": ids[i] for i in STEPS[step].inputs}
        parts = {**SESSION.keys.made_with(step), "config seed": "5eed"}
        every = {"step": step, "parts": json.dumps(parts), "key": f"key of {step}", "figure": "fine", **tags, **inputs}
        run = client.create_run(experiment, tags={f"segpipe.{name}": value for name, value in every.items()})
        ids[step] = run.info.run_id
        client.log_text(ids[step], settings.dump(config), runs.CONFIG)
    client.log_artifacts(ids["preprocess"], str(folder), "dataset")
    client.set_tag(ids["train"], lineage.COMMIT, "c0ffee")
    client.log_text(ids["train"], "", lineage.DIFF)
    weights = folder.parent / "weights.safetensors"
    weights.write_bytes(b"weights")
    client.log_artifact(ids["train"], str(weights), "final_model/weights")
    model = client.create_logged_model(experiment, name="model", source_run_id=ids["train"])
    client.log_model_artifact(model.model_id, str(weights), str(Path(lineage.WEIGHTS).parent))
    client.finalize_logged_model(model.model_id, "READY")
    for run_id in ids.values():
        client.set_terminated(run_id, "FINISHED")
    client.create_registered_model(MODEL)
    tags = {f"{step}_run": ids[step] for step in ids} | {"weights_sha256": hashes.sha256(weights), "test_dice": "0.5"}
    for decided in (DECISION, {}):
        client.create_model_version(MODEL, f"models:/{model.model_id}", tags=tags | decided, model_id=model.model_id)
    client.set_registered_model_alias(MODEL, "champion", "1")
    return client, config, manifest, ids, model.model_id


def drawn(found, files=False):
    console = Console(file=StringIO(), width=200, highlight=False)
    console.print(lineage_tree.draw(found, files))
    return console.file.getvalue()


def states(found):
    return {check.item: check.state for check in verification.verify(SESSION, found)}


def test_the_weights_lie_where_logged_models_have_them():
    from segpipe.inference import predictor
    from segpipe.serving import served_model

    assert f"artifacts/{served_model.ARTIFACT}/{predictor.WEIGHTS}" == lineage.WEIGHTS


def test_a_champion_leads_over_decision_and_runs_to_the_raw_files(made):
    _, _, manifest, ids, model_id = made
    found = lineage.of(f"models:/{MODEL}@champion")
    version, decision, evaluate, train, preprocess, raw = found.nodes
    assert [node.kind for node in found.nodes] == ["version", "decision", "evaluate", "train", "preprocess", "raw"]
    assert [n.parents for n in found.nodes] == [(decision.id,), *((n.id,) for n in found.nodes[2:]), ()]
    assert [n.id for n in (decision, evaluate, train, preprocess)] == [
        ids[s] for s in ("register", "evaluate", "train", "preprocess")
    ]
    assert version.facts["model"] == model_id
    assert version.facts["aliases"] == "champion"
    assert decision.facts["rule"] == "superiority"
    assert (train.facts["git commit"], train.facts["tree"]) == ("c0ffee", "as committed")
    assert train.parts["requirements"] == SESSION.keys.made_with("train")["requirements"]
    assert preprocess.facts["dataset digest"] == manifest.digest
    assert preprocess.facts["patients"] == "7 train, 2 val, 3 test"
    assert (raw.facts["cases"], raw.facts["reader"], raw.facts["data root"]) == ("12", "folder", manifest.root)
    assert found.cases == {case.case: case.sha256 for case in manifest.cases}


def test_a_version_from_before_decisions_were_recorded_leads_to_its_evaluation(made):
    found = lineage.of(f"models:/{MODEL}/2")
    assert found.nodes[0].parents == (made[3]["evaluate"],)
    assert found.first("decision") is None


@pytest.mark.parametrize(
    ("step", "kinds"),
    [
        ("preprocess", ["preprocess", "raw"]),
        ("train", ["train", "preprocess", "raw"]),
        ("register", ["register", "evaluate", "train", "preprocess", "raw"]),
    ],
)
def test_any_steps_run_has_a_lineage(made, step, kinds):
    assert [node.kind for node in lineage.of(made[3][step]).nodes] == kinds


def test_json_lists_raw_files_only_where_asked(made):
    found = lineage.of(f"models:/{MODEL}@champion")
    plain, full = json.loads(found.to_json()), json.loads(found.to_json(files=True))
    assert "files" not in plain
    assert full["files"] == found.cases
    assert plain["nodes"][3]["parts"]["code"] == SESSION.keys.made_with("train")["code"]


def test_rows_and_picture_tell_the_same_graph(made):
    found = lineage.of(f"models:/{MODEL}@champion")
    rows, boxes = found.rows(), found.picture()
    assert ("train: git commit", "c0ffee") in rows
    assert len({label for label, _ in rows}) == len(rows)
    assert [box["parents"] for box in boxes] == [list(node.parents) for node in found.nodes]
    short = f"train {found.nodes[3].id[:8]}"
    assert boxes[3]["lines"] == [short, "fine", "git commit: c0ffee", "tree: as committed"]


def test_the_tree_shows_every_node_and_the_cases_where_asked(made):
    found = lineage.of(f"models:/{MODEL}@champion")
    text = drawn(found)
    assert [text.index(node.title) for node in found.nodes] == sorted(text.index(node.title) for node in found.nodes)
    assert "case7 " not in text
    assert f"case7 {found.cases['case7']}" in drawn(found, files=True)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("models:/nobody@champion", "nobody not found"),
        (f"models:/{MODEL}@nobody", "nobody not found"),
        (f"models:/{MODEL}/77", "77"),
        (f"models:/{MODEL}", "expected models:/NAME@champion"),
        ("0123456789", "no such run"),
    ],
)
def test_what_is_not_there_is_told_in_a_line(made, uri, told):
    with pytest.raises(InputError, match=told) as caught:
        lineage.of(uri)
    assert "\n" not in str(caught.value)


def test_what_segpipe_did_not_make_is_refused(made):
    client, *_, model_id = made
    client.create_registered_model("foreign")
    client.create_model_version("foreign", f"models:/{model_id}", model_id=model_id)
    with pytest.raises(InputError, match="segpipe did not register it"):
        lineage.of("models:/foreign/1")
    run = client.create_run(experiments.ensure("by hand"))
    with pytest.raises(InputError, match="no step of segpipe"):
        lineage.of(run.info.run_id)


def test_what_is_as_recorded_verifies(made):
    found = states(lineage.of(f"models:/{MODEL}@champion"))
    assert set(found.values()) == {"ok"}
    assert {
        "register: code",
        "train: code",
        "weights: recorded digest",
        "dataset train_images.npy",
        "raw files",
    } <= set(found)


def test_the_code_digest_of_an_earlier_segpipe_is_not_compared(made):
    found = lineage.of(f"models:/{MODEL}@champion")
    older = [
        replace(node, parts={part: node.parts[part] for part in node.parts.keys() - {FORMAT}}) for node in found.nodes
    ]
    told = states(replace(found, nodes=tuple(older)))
    assert {told[f"{step}: code"] for step in STEPS} == {"gone"}
    assert "differs" not in told.values()


def test_a_changed_a_lost_and_a_new_raw_file_are_told(made, tmp_path):
    _, config, manifest, *_ = made
    root = tmp_path / "data"
    shutil.copytree(manifest.root, root)
    shutil.copy(root / "images/case1.png", root / "images/case0.png")
    for name in ("images", "masks"):
        (root / name / "case2.png").rename(root / name / "other.png")
    recipe = tmp_path / "resolved.yaml"
    recipe.write_text(settings.dump(config))
    checks = list(verification.raw_cases(SESSION.screen, manifest.model_copy(update={"root": str(root)}), recipe))
    assert {check.item: check.state for check in checks} == {
        "raw case case0": "differs",
        "raw case case2": "gone",
        "raw files": "ok",
        "raw files: not in the dataset": "differs",
    }
    (root / "images/other.png").unlink()
    (broken,) = verification.raw_cases(SESSION.screen, manifest.model_copy(update={"root": str(root)}), recipe)
    assert broken.state == "differs"
    assert "no image of the same name" in broken.found
    shutil.rmtree(root)
    (lost,) = verification.raw_cases(SESSION.screen, manifest.model_copy(update={"root": str(root)}), recipe)
    assert lost.state == "gone"


def test_a_changed_array_other_code_and_other_weights_differ(made, store):
    client, *_, ids, model_id = made
    uri = f"models:/{MODEL}@champion"
    array = next(path for path in store.rglob("val_masks.npy") if ids["preprocess"] in path.parts)
    weights = next(path for path in store.rglob("weights.safetensors") if model_id in path.parts)
    parts = client.get_run(ids["train"]).data.tags[run_tags.PARTS]
    kept = {path: path.read_bytes() for path in (array, weights)}
    try:
        array.write_bytes(kept[array][:-1] + b"\7")
        weights.write_bytes(b"others")
        client.set_tag(ids["train"], run_tags.PARTS, json.dumps({**json.loads(parts), "code": "another"}))
        differing = {item for item, state in states(lineage.of(uri)).items() if state == "differs"}
    finally:
        client.set_tag(ids["train"], run_tags.PARTS, parts)
        for path, content in kept.items():
            path.write_bytes(content)
    assert differing == {
        "dataset val_masks.npy",
        "train: code",
        "weights: recorded digest",
        "weights: the training's own",
    }


def test_a_table_of_cases_is_held_against_its_digest(made):
    client, *_, ids, _ = made
    client.log_text(ids["evaluate"], "case,dice\na,0.5\n", "evaluation/cases.csv")
    client.set_tag(ids["evaluate"], verification.TABLE_TAG, "another")
    found = lineage.of(ids["evaluate"])
    assert states(found)["evaluation/cases.csv"] == "differs"
    client.delete_tag(ids["evaluate"], verification.TABLE_TAG)
    assert "evaluation/cases.csv" not in states(found)


def test_a_deleted_run_is_told_in_its_place_and_the_rest_stays(made):
    client, *_, ids, _ = made
    client.delete_run(ids["train"])
    try:
        found = lineage.of(f"models:/{MODEL}@champion")
        assert [node.kind for node in found.nodes][-3:] == ["train", "preprocess", "raw"]
        assert [node.kind for node in found.nodes if node.state == "deleted"] == ["train"]
        assert "state: deleted" in drawn(found)
        assert states(found)["train run"] == "gone"
        with pytest.raises(InputError, match="its train run"):
            reproduce.recorded(found)
    finally:
        client.restore_run(ids["train"])


def test_where_no_trace_of_a_run_is_left_the_version_knows_the_others(made):
    client, *_, ids, model_id = made
    tags = {f"{step}_run": ids[step] for step in ids} | {"evaluate_run": "f" * 32}
    version = client.create_model_version(MODEL, f"models:/{model_id}", tags=tags, model_id=model_id)
    found = lineage.of(f"models:/{MODEL}/{version.version}")
    assert [node.kind for node in found.nodes] == ["version", "evaluate", "train", "preprocess", "raw"]
    assert found.nodes[1].facts == {"state": "deleted"}
    assert found.nodes[1].parents == (ids["train"],)


def test_runs_of_a_scratch_experiment_are_not_built_on(made):
    client, *_ = made
    scratch, usual = experiments.ensure_scratch("aside"), experiments.ensure("by hand")
    tags = {run_tags.STEP: "train", run_tags.KEY: "some key"}
    for experiment in (scratch, usual):
        client.set_terminated(client.create_run(experiment, tags=tags).info.run_id, "FINISHED")
        client.create_run(experiment, tags=tags)
    assert [run.info.experiment_id for run in runs.finished("train", "some key")] == [usual]
    assert [run.info.experiment_id for run in runs.unfinished("train", "some key")] == [usual]
    assert experiments.ensure_scratch("aside") == scratch
    with pytest.raises(InputError, match="its runs are built on"):
        experiments.ensure_scratch("by hand")


def report(**changed):
    same = {"dataset": Pair("d", "d", None), "weights": Pair("w", "w", 0.0), "cases": Pair("c", "c", 0.0)}
    values = {"metrics": {"dice": Pair(0.7, 0.7, 0.0)}, "runs": {}, "circumstances": {}, **same, **changed}
    return Report(model="models:/m/1", tolerance=0.01, **values)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, IDENTICAL),
        ({"weights": Pair("w", "v", 1e-7)}, TOLERATED),
        ({"cases": Pair("c", "b", 0.0)}, TOLERATED),
        ({"weights": Pair("unknown", "v", None), "metrics": {"dice": Pair(0.7, 0.69, -0.01)}}, TOLERATED),
        ({"weights": Pair("w", "v", 0.1), "metrics": {"dice": Pair(0.7, 0.68, -0.02)}}, REFUTED),
        ({"weights": Pair("w", "v", 0.1), "metrics": {"hd95": Pair(30.0, 30.2, 0.2)}}, TOLERATED),
        ({"weights": Pair("w", "v", 0.1), "metrics": {"hd95": Pair("none", 30.2, None)}}, REFUTED),
    ],
)
def test_the_verdict_follows_weights_cases_and_means(changed, verdict):
    assert report(**changed).verdict == verdict
    assert json.loads(report(**changed).to_json())["verdict"] == verdict


def test_means_are_paired_by_name_and_a_missing_one_has_no_difference():
    nan = float("nan")

    def found(*means):
        return {
            name: Interval(mean, mean, mean, 1, 1) for name, mean in zip(("dice", "hd95", "nsd"), means, strict=True)
        }

    pairs = reproduce.means(found(0.5, nan, nan), found(0.75, 3.0, nan))
    assert pairs["dice"] == (0.5, 0.75, 0.25)
    assert pairs["hd95"] == ("none", 3.0, None)
    assert pairs["nsd"].equal


def test_tables_differ_by_their_largest_number():
    ours = pd.DataFrame({"case": ["a", "b"], "dice": [0.5, None], "hd95": [3.0, 4.0]})
    assert reproduce.largest_cell(ours, ours.assign(hd95=[3.0, 4.5])) == 0.5
    assert reproduce.largest_cell(ours, ours.assign(dice=[0.5, 0.1])) is None
    assert reproduce.largest_cell(ours, ours.assign(case=["a", "c"])) is None


def test_weights_differ_by_their_largest_difference(made, tmp_path):
    import torch

    from segpipe.inference.predictor import Predictor
    from segpipe.inference.spec import ModelSpec

    _, config, manifest, *_ = made
    names = {"kind": manifest.kind, "channels": manifest.channels, "classes": manifest.classes}
    spec = ModelSpec(model=config.model, preprocess=config.preprocess, **names)
    for folder, change in (("ours", 0.0), ("theirs", 0.25)):
        model = network(config)
        with torch.no_grad():
            next(model.parameters()).view(-1)[3] += change
        Predictor(spec, model).save(tmp_path / folder)
    assert reproduce.largest_difference(tmp_path / "ours", tmp_path / "theirs") == pytest.approx(0.25, abs=1e-6)
