"""What a touched file does to the keys of the four steps, and to the pages of an evaluation: a table."""

import shutil

import pytest
from conftest import new_session

from segpipe.config import settings
from segpipe.config.sections import Config, Section
from segpipe.files.code_closure import Code
from segpipe.files.project import PROJECT
from segpipe.orchestration import keys
from segpipe.orchestration.step_table import STEPS

ALL = tuple(STEPS)
TRAIN, EVALUATE, REGISTER = ALL[1:], ALL[2:], ALL[3:]
NONE = ()
MORE = "\nNEW = 1\n"
# File below segpipe/, what is written for what (MORE: appended), steps that run again, whether pages are made again.
TABLE = {
    "a plot's colour": ("plots/colours.py", '"#2ca25f"', '"#2ca260"', NONE, True),
    "the report's template": ("evaluation/report/template.html", "</title>", "!</title>", NONE, True),
    "the report's tables": ("evaluation/report/tables.py", "LOWEST = 10", "LOWEST = 12", NONE, True),
    "the card's text": ("evaluation/card.py", "Research software", "Software", NONE, True),
    "a knob's description": ("config/sections.py", "who answers for the model", "by whom", NONE, False),
    "an error's text": ("data/dataset.py", "but the manifest says", "the manifest has", NONE, False),
    "a docstring": ("training/engine.py", '"""', '"""Well. ', NONE, False),
    "a comment": ("evaluation/gate.py", "\n\n\n", "\n\n\n# So.\n", NONE, False),
    "tracking": ("tracking/runs.py", "", MORE, NONE, False),
    "recording": ("recording/spool.py", "", MORE, NONE, False),
    "orchestration": ("orchestration/launch.py", "", MORE, NONE, False),
    "what makes pages again": ("orchestration/pages.py", "", MORE, NONE, False),
    "serving": ("serving/request.py", "", MORE, NONE, False),
    "the server": ("server/application.py", "", MORE, NONE, False),
    "the registry": ("registry/champions.py", "", MORE, NONE, False),
    "prediction": ("prediction/batch.py", "", MORE, NONE, False),
    "processes": ("runtime/processes.py", "", MORE, NONE, False),
    "a reader": ("data/readers/nifti.py", "", MORE, ALL, False),
    "transform, which also makes the data set": ("data/transform.py", "", MORE, ALL, True),
    "augment": ("data/augment.py", "", MORE, TRAIN, False),
    "engine": ("training/engine.py", "", MORE, TRAIN, False),
    "a loss": ("models/losses.py", "", MORE, TRAIN, False),
    "the predictor": ("inference/predictor.py", "", MORE, TRAIN, False),
    "the Dice that a training watches too": ("metrics/overlaps.py", "", MORE, TRAIN, True),
    "a metric's formula": ("metrics/surface.py", "percentile(p, 95)", "percentile(p, 94)", EVALUATE, True),
    "the threshold rule": ("evaluation/choosing.py", "ROUNDING = 1e-9", "ROUNDING = 1e-6", EVALUATE, False),
    "which masks are looked at first": ("evaluation/suspects.py", "COUNT = 6", "COUNT = 9", EVALUATE, True),
    "what an evaluation keeps": ("evaluation/kept.py", "", MORE, EVALUATE, True),
    "what a model must beat": ("evaluation/trivial.py", "64, 64", "32, 32", EVALUATE, True),
    "the gate's guards": ("evaluation/guards.py", "TUBES = 15.0", "TUBES = 12.0", REGISTER, False),
    "the gate": ("evaluation/gate.py", "ROUNDING = 1e-9", "ROUNDING = 1e-6", REGISTER, False),
}
# What computes for the served model and the pages alone; all else of these folders is in a step's key.
COMPUTING = ("data", "metrics", "models", "inference", "training", "evaluation")
TOLD = {"evaluation/report/data_page.py", "evaluation/report/federation_page.py", "data/readers/description.py"}
FOR_SERVING = {"data/encodings.py", "inference/input_assembly.py", "inference/quantities.py"}


@pytest.fixture(scope="module")
def config():
    return settings.load(None, {"data.format": "phantom"})


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project's source in another folder."""
    folder = tmp_path_factory.mktemp("a copy")
    shutil.copytree(PROJECT / "segpipe", folder / "segpipe", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def made(project):
    return keys.Keys(new_session().screen, Code(project))


def chain_of(found, config):
    """The digests of the four keys, each on the ones before it."""
    digests = {}
    for name, step in STEPS.items():
        digests[name] = found.key(name, config, {i: digests[i] for i in step.inputs}).digest
    return digests


def changed(before, after):
    return tuple(name for name in before if before[name] != after[name])


@pytest.fixture(scope="module")
def untouched(copy, config):
    found = made(copy)
    return chain_of(found, config), found.pages(config)


@pytest.mark.parametrize("touched", TABLE)
def test_a_touched_file_runs_again_what_it_decides_and_nothing_else(copy, config, untouched, touched):
    name, old, new, steps, pages = TABLE[touched]
    path = copy / "segpipe" / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    try:
        path.write_text(text.replace(old, new, 1) if old else text + new, encoding="utf-8")
        found = made(copy)
        assert changed(untouched[0], chain_of(found, config)) == steps
        assert (found.pages(config) != untouched[1]) == pages
    finally:
        path.write_text(text, encoding="utf-8")


def test_the_code_of_federations_decides_what_they_train_and_nothing_else(copy, config):
    path = copy / "segpipe/federation/site.py"
    text = path.read_text(encoding="utf-8")
    together = settings.load(None, {"data.format": "phantom", "federate.strategy": "fedavg"})
    before = [chain_of(made(copy), one) for one in (config, together)]
    try:
        path.write_text(text + MORE, encoding="utf-8")
        after = [chain_of(made(copy), one) for one in (config, together)]
    finally:
        path.write_text(text, encoding="utf-8")
    assert [changed(*pair) for pair in zip(before, after, strict=True)] == [NONE, TRAIN]


def test_whatever_computes_is_in_a_key():
    found = made(PROJECT)
    covered = {name for step in STEPS for name in found.deciding(step)}
    there = {path for folder in COMPUTING for path in (PROJECT / "segpipe" / folder).rglob("*.py")}
    outside = {path.relative_to(PROJECT).as_posix() for path in there} - covered
    paged = {name for name in found.pages(settings.load(None, {})) if name not in covered}
    assert {name.removeprefix("segpipe/") for name in outside - paged} == FOR_SERVING | TOLD


@pytest.mark.parametrize(
    ("knob", "steps", "pages"),
    [
        ("card.authors=A. B.", NONE, ["card.authors"]),
        ("registry.model_name=another", REGISTER, ["registry.model_name"]),
        ("evaluate.subgroups=site", EVALUATE, []),
        ("gate.alpha=0.01", REGISTER, []),
        ("train.lr=0.5", TRAIN, []),
        ("federate.strategy=fedavg", TRAIN, []),
        ("data.root=elsewhere", NONE, []),
        ("tracking.experiment=another", NONE, []),
        ("serving.port=1", NONE, []),
    ],
)
def test_a_knob_runs_again_what_it_decides(config, knob, steps, pages):
    name, _, value = knob.partition("=")
    found, other = made(PROJECT), settings.load(None, {"data.format": "phantom", name: value})
    assert changed(chain_of(found, config), chain_of(found, other)) == steps
    before, after = found.pages(config), found.pages(other)
    assert [name for name in before if before[name] != after[name]] == pages


class Rounds(Section):
    count: int = 3
    site: str = ""


class Later(Config):
    """The config of a version that knows one section more."""

    rounds: Rounds = Rounds()


def test_a_section_that_is_added_at_its_default_changes_no_key():
    known, as_before = ("evaluate", "seed"), {**keys.AS_BEFORE, "rounds.count": 3, "rounds.site": ""}
    before = keys.section_digests(known, Config())
    assert keys.section_digests((*known, "rounds"), Later(), as_before) == before
    other = keys.section_digests((*known, "rounds"), Later(rounds=Rounds(count=4)), as_before)
    assert other.keys() - before.keys() == {"rounds"}
    assert other | before == other
