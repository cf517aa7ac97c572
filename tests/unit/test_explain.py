"""Why a step runs, in words: which of the finished runs is compared, and what is told of it."""

import json

from conftest import new_session
from mlflow.entities import Param, Run, RunData, RunInfo, RunTag

from segpipe.config import settings
from segpipe.files import hashes
from segpipe.orchestration import explain, keys
from segpipe.tracking import run_tags

MADE = new_session().keys
SECTIONS = ("model", "loss", "augment", "train", "seed")


def config(**knobs):
    return settings.load(None, {name.replace("__", "."): value for name, value in knobs.items()})


def parts(made, **others):
    """The parts of a key of train for a config."""
    values = made.model_dump(mode="json")
    known = {f"config {section}": hashes.of_json(values[section])[:16] for section in SECTIONS}
    return {
        **known,
        "key format": "2",
        "code": "c",
        "requirements": "r",
        "python": "3.11",
        "result of preprocess": "p",
    } | others


def run(made, name, **others):
    params = [Param(f"cfg.{knob}", value) for knob, value in settings.flat(made).items()]
    info = RunInfo(name, "1", "me", "FINISHED", 0, 1, "active")
    return Run(info, RunData([], params, [RunTag(run_tags.PARTS, json.dumps(parts(made, **others)))]))


def differences(earlier, now, before=None, **others):
    made_of = {"code": {}, "requirements": {}, "raw data": {}}
    return explain.differences(earlier, now, keys.Key(parts(now, **others)), before or made_of)


def test_knobs_are_told_with_both_values_and_an_empty_one_by_name():
    said = differences(run(config(), "a"), config(train__lr="0.01", model__options="decoder_attention_type=scse"))
    assert said == ["model.options empty -> decoder_attention_type=scse", "train.lr 0.001 -> 0.01"]


def test_a_result_and_a_python_that_changed_are_named():
    said = differences(run(config(), "a"), config(), **{"result of preprocess": "q", "python": "3.12"})
    assert said == ["Python 3.11 -> 3.12", "preprocess changed"]


def test_a_run_of_an_earlier_segpipe_is_told_as_that_whatever_else_differs():
    earlier = run(config(), "a", **{"key format": "1", "code": "bytes"})
    assert differences(earlier, config(train__lr="0.01")) == ["an earlier segpipe made its runs"]


def test_where_the_resume_knob_alone_differs_nothing_is_told():
    assert differences(run(config(train__resume="never"), "a"), config())[1:] == []


def test_the_run_that_comes_nearest_is_compared():
    wanted = config(train__lr="0.01")
    key = keys.Key(parts(wanted))
    far = run(config(train__lr="0.1", train__epochs="7", model__arch="fpn"), "far")
    near = run(config(train__lr="0.5"), "near")
    assert explain.distance(near, wanted, key) < explain.distance(far, wanted, key)
    assert explain.reason(MADE, [far, near], "train", wanted, key) == "train.lr 0.5 -> 0.01"


def test_a_step_that_never_ran_says_so():
    assert explain.reason(MADE, [], "train", config(), keys.Key(parts(config()))) == "it has not run before"


def test_files_are_told_by_what_became_of_them():
    five = {str(number): "1" for number in range(5)}
    assert explain.files("raw data", {"a": "1", "b": "1"}, {"a": "2", "c": "1"}) == [
        "1 raw file changed: a",
        "1 raw file added: c",
        "1 raw file removed: b",
    ]
    assert explain.files("raw data", five, dict.fromkeys(five, "2")) == ["5 raw files changed: 0, 1, 2, and 2 more"]
    assert explain.files("code", {"s/a.py": "1", "s/b.py": "1"}, {"s/a.py": "2", "s/b.py": "1"}) == ["s/a.py changed"]


def test_pins_are_told_with_both_versions():
    assert explain.pins({"torch": "1", "gone": "2"}, {"torch": "2", "new": "3"}) == [
        "gone 2 -> none",
        "new none -> 3",
        "torch 1 -> 2",
    ]
