"""Whether a model still comes from what its lineage records: digests computed again and compared."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from segpipe.config import settings
from segpipe.data import raw
from segpipe.data.dataset import Dataset
from segpipe.data.manifest import Manifest
from segpipe.data.readers import all_cases, reader_of
from segpipe.errors import InputError, StepError
from segpipe.files import hashes
from segpipe.orchestration.keys import CODE, FORMAT, Keys
from segpipe.orchestration.screen import Screen
from segpipe.orchestration.session import Session
from segpipe.tracking import artifacts, lineage, runs
from segpipe.tracking.lineage_graph import Lineage, Node

OK, DIFFERS, GONE = "ok", "differs", "gone"
CHUNK = 1 << 24
TABLE_TAG = "segpipe.cases_sha256"


class Check(NamedTuple):
    """Whether one recorded thing is still what was recorded: ok, differs or gone, and what was found."""

    item: str
    state: str
    found: str


def verify(session: Session, found: Lineage) -> Iterator[Check]:
    """Compare what is still there with what was recorded."""
    for node in found.nodes:
        if node.state == "deleted":
            yield Check(f"{node.kind} run", GONE, node.id)
        if node.parts:
            yield from _made_with(session.keys, "register" if node.kind == "decision" else node.kind, node.parts)
    yield from _weights(found)
    if (evaluate := found.first("evaluate")) is not None:
        yield from _cases_table(evaluate)
    for node in found.nodes:
        if node.kind == "preprocess":
            yield from _dataset(session.screen, node)


def _compare(item: str, recorded: str, now: str) -> Check:
    return Check(item, OK, now) if recorded == now else Check(item, DIFFERS, f"{now}, recorded {recorded}")


def _made_with(keys: Keys, step: str, parts: Mapping[str, str]) -> Iterator[Check]:
    made_with = keys.made_with(step)
    if parts.get(FORMAT) != made_with.pop(FORMAT):
        del made_with[CODE]
        yield Check(f"{step}: code", GONE, "its digest is an earlier segpipe's, which can't be compared")
    for part, now in made_with.items():
        yield _compare(f"{step}: {part}", parts.get(part, "nothing"), now)


def _weights(found: Lineage) -> Iterator[Check]:
    """The weights of the model against the digest recorded beside it, and against what the training left."""
    model_id = found.nodes[0].facts.get("model")
    if model_id is None:
        return
    path, recorded = lineage.weights(model_id), found.nodes[0].facts.get(lineage.RECORDED)
    if path is None:
        yield Check("weights", GONE, model_id)
        return
    now = hashes.sha256(path)
    if recorded:
        yield _compare("weights: recorded digest", recorded, now)
    train, left = found.first("train"), f"final_model/weights/{path.name}"
    if train is None or not artifacts.has(train.id, left):
        yield Check("weights: the training's own", GONE, left)
        return
    own = artifacts.local(f"runs:/{train.id}/{left}")
    yield _compare("weights: the training's own", hashes.sha256(own), now)


def _cases_table(evaluate: Node) -> Iterator[Check]:
    run, path = lineage.find(evaluate.id), "evaluation/cases.csv"
    if run is None or TABLE_TAG not in run.data.tags:
        return
    if not artifacts.has(evaluate.id, path):
        yield Check(path, GONE, evaluate.id)
        return
    yield _compare(path, run.data.tags[TABLE_TAG], hashes.sha256(artifacts.local(f"runs:/{evaluate.id}/{path}")))


def _dataset(screen: Screen, node: Node) -> Iterator[Check]:
    try:
        folder = artifacts.local(f"runs:/{node.id}/dataset")
        manifest = Manifest.read(folder / "manifest.json")
        recipe = artifacts.local(f"runs:/{node.id}/{runs.CONFIG}")
    except InputError as error:
        yield Check("dataset", GONE, str(error))
        return
    yield _compare("dataset digest", node.facts["dataset digest"], manifest.digest)
    dataset = Dataset(folder, manifest)
    for name, record in manifest.arrays.items():
        if not (folder / record.file).is_file():
            yield Check(f"dataset {record.file}", GONE, str(folder))
        else:
            yield _array(dataset, name)
    yield from raw_cases(screen, manifest, recipe)


def _array(dataset: Dataset, name: str) -> Check:
    record = dataset.manifest.arrays[name]
    item, recorded = f"dataset {record.file}", record.sha256
    try:
        flat = dataset.array(name).reshape(-1)
    except InputError as error:
        return Check(item, DIFFERS, str(error))
    total = hashlib.sha256()
    for first in range(0, len(flat), CHUNK):
        total.update(flat[first : first + CHUNK].tobytes())
    return _compare(item, recorded, total.hexdigest())


def raw_cases(screen: Screen, manifest: Manifest, recipe: Path) -> Iterator[Check]:
    """Every case read again by the reader of its config: one Check for those that agree, one for each other."""
    root = Path(manifest.root)
    if not root.is_dir():
        yield Check("raw files", GONE, manifest.root)
        return
    data = settings.recorded(recipe, {}).data
    try:
        reader = reader_of(data, raw.check_root(manifest.root))
        listed = {case.name: case for case in all_cases(reader)}
    except InputError as error:
        yield Check("raw files", DIFFERS, str(error))
        return
    agree, advance = 0, screen.progress("raw files")
    for done, record in enumerate(manifest.cases, start=1):
        item = f"raw case {record.case}"
        if record.case not in listed:
            yield Check(item, GONE, manifest.root)
        else:
            try:
                now = reader.load(listed[record.case]).sha256
            except InputError as error:
                now = str(error)
            if now == record.sha256:
                agree += 1
            else:
                yield _compare(item, record.sha256, now)
        advance(done, len(manifest.cases), record.case)
    if agree:
        yield Check("raw files", OK, f"{agree} of {len(manifest.cases)} cases")
    new = sorted(listed.keys() - {record.case for record in manifest.cases})
    if new:
        yield Check("raw files: not in the dataset", DIFFERS, ", ".join(new))


def judge(screen: Screen, uri: str, checks: list[Check]) -> None:
    """Tell how many things are as recorded. Raises StepError where one differs, or nothing could be compared."""
    counts = Counter(check.state for check in checks)
    screen.say(", ".join(f"{counts[state]} {state}" for state in (OK, DIFFERS, GONE)))
    differing = [check.item for check in checks if check.state == DIFFERS]
    if differing:
        raise StepError(f"{uri}: {len(differing)} of {len(checks)} items differ: {', '.join(differing)}")
    if not counts[OK]:
        raise StepError(f"{uri}: nothing of it is left to compare")
