"""Where a model comes from: its version, the decision, the runs behind it, the raw files.

Everything is read from the tracking store. What is no longer there says so in its own place.
"""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from segpipe.data.manifest import FILE, SPLITS, Manifest
from segpipe.errors import InputError
from segpipe.files import hashes
from segpipe.tracking import artifacts, connection, run_tags
from segpipe.tracking.lineage_graph import STATE, Lineage, Node

CHAIN = ("register", "evaluate", "train", "preprocess")
WEIGHTS = "artifacts/segpipe/weights.safetensors"
WEIGHTS_TAG, COMMIT = "segpipe.weights_sha256", "mlflow.source.git.commit"
DIFF = "config/git.diff"
DELETED, RECORDED = "deleted", "weights sha256"
DECISION = {
    "decision": "decision", "rule": "decision_rule", "reason": "decision_reason", "against": "decision_against",
    "by": "decided_by", "at": "decided_at", "register run": "register_run",
}  # fmt: skip


def of(uri: str) -> Lineage:
    """The lineage of `models:/NAME@ALIAS`, `models:/NAME/VERSION` or of a step's run ID.

    Raises InputError where there is no such model or run, or segpipe did not make it.
    """
    if not uri.startswith("models:/"):
        tags = _step_run(uri).data.tags
        (first, *others), cases = _nodes(_walk(tags[run_tags.STEP], uri, {}))
        if model_id := tags.get(run_tags.MODEL):
            first = replace(first, facts=first.facts | _weights(model_id, tags.get(WEIGHTS_TAG, "")))
        return Lineage(uri, (first, *others), cases)
    version = registered(uri)
    known = {step: version.tags.get(f"{step}_run", "") for step in CHAIN}
    nodes, cases = _nodes(_walk("evaluate", known["evaluate"], known))
    decision = _decision(version)
    first = _version(version, decision.id if decision else known["evaluate"])
    return Lineage(uri, (first, *([decision] if decision else []), *nodes), cases)


def registered(uri: str) -> ModelVersion:
    """The model version a URI names. Raises InputError where there is none, or segpipe did not register it."""
    match = re.fullmatch(r"models:/(?P<name>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<version>\d+))", uri)
    if match is None:
        raise InputError(f"{uri}: expected models:/NAME@champion or models:/NAME/VERSION")
    client, name = MlflowClient(), match["name"]
    try:
        number = match["version"] or str(client.get_model_version_by_alias(name, match["alias"]).version)
        version = client.get_model_version(name, number)
    except MlflowException as error:
        raise connection.refusal(uri, error) from None
    if "evaluate_run" not in version.tags:
        raise InputError(f"{uri}: version {number} has no tag evaluate_run: segpipe did not register it")
    return version


def _step_run(run_id: str) -> Run:
    run = find(run_id)
    if run is None:
        raise InputError(f"{run_id}: no such run; give a run ID, models:/NAME@champion or models:/NAME/VERSION")
    step = run.data.tags.get(run_tags.STEP, "no step of segpipe")
    if step not in CHAIN:
        raise InputError(f"run {run_id} belongs to '{step}'; give a run of {', '.join(reversed(CHAIN))}, or a model")
    return run


def find(run_id: str) -> Run | None:
    """A run, deleted ones included; None where there is no trace of it."""
    return connection.get_if_there(MlflowClient().get_run, run_id)


def _version(version: ModelVersion, parent: str) -> Node:
    tags = version.tags
    facts = {"registered": _utc(version.creation_timestamp), "aliases": ", ".join(sorted(version.aliases)) or "none"}
    if "test_dice" in tags:
        dice, low, high = run_tags.dice_of(tags)
        facts["test Dice"] = f"{dice:.4f} [{low:.4f}, {high:.4f}]"
    model_id = version.model_id or str(version.source).removeprefix("models:/")
    facts |= _weights(model_id, tags.get("weights_sha256", ""))
    name = f"models:/{version.name}/{version.version}"
    return Node(name, "version", f"{version.name} version {version.version}", facts, (parent,))


def _decision(version: ModelVersion) -> Node | None:
    facts = {label: str(version.tags[tag]) for label, tag in DECISION.items() if version.tags.get(tag)}
    if "decision" not in facts:
        return None
    run_id, run = facts.get("register run", ""), None
    if run_id and _gone(run := find(run_id)):
        facts[STATE] = DELETED
    name = run_id or f"models:/{version.name}/{version.version}/decision"
    return Node(name, "decision", "decision", facts, (version.tags["evaluate_run"],), _parts(run))


class Made(NamedTuple):
    """A step's run, None where there is no trace of it, and the runs it was built on, by step."""

    step: str
    id: str
    run: Run | None
    inputs: dict[str, str]


def _walk(step: str, run_id: str, known: dict[str, str]) -> list[Made]:
    """A run and every one it was built on; `known` has run IDs by step for where there is no trace of a run."""
    waiting, found = [(step, run_id)], dict[str, Made]()
    while waiting:
        step, run_id = waiting.pop(0)
        if run_id not in found:
            run = find(run_id)
            found[run_id] = Made(step, run_id, run, _inputs(step, run, known))
            waiting += found[run_id].inputs.items()
    return sorted(found.values(), key=lambda made: CHAIN.index(made.step))


def _inputs(step: str, run: Run | None, known: dict[str, str]) -> dict[str, str]:
    """The runs a run was built on, by step, the last one of the chain first."""
    earlier = CHAIN[CHAIN.index(step) + 1 :]
    if run is None:
        return next(({s: known[s]} for s in earlier if known.get(s)), {})
    return {s: run.data.tags[run_tags.INPUT + s] for s in earlier if run_tags.INPUT + s in run.data.tags}


def _nodes(made: list[Made]) -> tuple[tuple[Node, ...], dict[str, str]]:
    """A node for each run, one for the raw files of each dataset, and the digest of each raw case."""
    nodes: list[Node] = []
    cases: dict[str, str] = {}
    inputs = {one.id: list(one.inputs.values()) for one in made}
    for one in made:
        indirect = {above for parent in inputs[one.id] for above in inputs[parent]}
        parents = tuple(parent for parent in inputs[one.id] if parent not in indirect)
        facts = _facts(one.step, one.run) if one.run else {STATE: DELETED}
        node = Node(one.id, one.step, f"{one.step} {one.id}", facts, parents, _parts(one.run))
        if one.step != "preprocess" or one.run is None:
            nodes.append(node)
            continue
        digests, described = _dataset(one.id)
        cases |= digests
        raw = [_raw(node, described, digests)] if digests else []
        nodes += [replace(node, facts=facts | described, parents=tuple(r.id for r in raw)), *raw]
    return tuple(nodes), cases


def _raw(dataset: Node, described: dict[str, str], digests: dict[str, str]) -> Node:
    facts = {label: described[label] for label in ("reader", "data root")}
    facts |= {"cases": str(len(digests)), "cases digest": hashes.of_json(digests)[:16]}
    if dataset.parts.get("raw data"):
        facts["files digest"] = dataset.parts["raw data"]
    return Node(f"{dataset.id}/raw", "raw", "raw files", facts)


def _gone(run: Run | None) -> bool:
    return run is None or str(run.info.lifecycle_stage) == DELETED


def _facts(step: str, run: Run) -> dict[str, str]:
    tags = run.data.tags
    state = DELETED if _gone(run) else run.info.status
    facts = {} if state in ("FINISHED", "RUNNING") else {STATE: state}
    facts |= {"result": tags[run_tags.FIGURE]} if run_tags.FIGURE in tags else {}
    facts["started"] = _utc(run.info.start_time)
    facts["git commit"] = tags.get(COMMIT, "unknown")
    if step == "train":
        facts["tree"] = tree(run)
    if step == "preprocess":
        facts["dataset digest"] = tags.get("segpipe.dataset_digest", "unknown")
    facts["key"] = tags.get(run_tags.KEY, "unknown")[:16]
    config = {name: value for name, value in _parts(run).items() if name.startswith("config ")}
    return facts | {"config digest": hashes.of_json(config)[:16]}


def _parts(run: Run | None) -> dict[str, str]:
    return dict(json.loads(run.data.tags.get(run_tags.PARTS, "{}"))) if run else {}


def tree(run: Run) -> str:
    """Whether a training's checkout had changes that its commit has not, in words."""
    if COMMIT not in run.data.tags:
        return "unknown: not a git checkout"
    size = uncommitted(run)
    if size is None:
        return f"unknown: {DIFF} is gone"
    return f"changed since the commit: {DIFF}, {size} bytes" if size else "as committed"


def uncommitted(run: Run) -> int | None:
    """The bytes of a training's changes that its commit has not; None where they are not known."""
    items = [] if _gone(run) else MlflowClient().list_artifacts(run.info.run_id, "config")
    return next((item.file_size for item in items if item.path == DIFF), None)


def _dataset(run_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """The digest of each raw case of a dataset, and what its manifest says of it."""
    try:
        manifest = Manifest.read(artifacts.local(f"runs:/{run_id}/dataset/{FILE}"))
    except InputError as error:
        return {}, {"dataset": f"gone ({error})"}
    patients = (f"{len({c.patient for c in manifest.of(split)})} {split}" for split in SPLITS)
    return {case.case: case.sha256 for case in manifest.cases}, {
        "patients": ", ".join(patients),
        "reader": manifest.reader,
        "data root": manifest.root,
    }


def weights(model_id: str) -> Path | None:
    """A logged model's file of weights, a copy where it is on a server; None where it is gone."""
    try:
        path = artifacts.local(f"models:/{model_id}") / WEIGHTS
    except InputError:
        return None
    return path if path.is_file() else None


def _weights(model_id: str, recorded: str) -> dict[str, str]:
    """A model's weights: their size, and the recorded digest, or that of the file now where none is recorded."""
    try:
        items = MlflowClient().list_logged_model_artifacts(model_id, str(Path(WEIGHTS).parent))
    except MlflowException:
        items = []
    size = next((item.file_size or 0 for item in items if item.path == WEIGHTS), None)
    facts = {"model": model_id, "weights": "gone" if size is None else f"{size / 1e6:.2f} MB"}
    if recorded:
        return facts | {RECORDED: recorded}
    path = weights(model_id)
    return facts | ({f"{RECORDED} now": hashes.sha256(path)} if path else {})


def _utc(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "unknown"
    return datetime.fromtimestamp(milliseconds // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
