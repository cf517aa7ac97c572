"""Where the network computes in bf16: on a processor that has it, and is faster with it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Watched, network, training_set, with_knobs
from test_inference import predictor

from segpipe.config.sections import TrainConfig
from segpipe.data.batches import Batches
from segpipe.data.dataset import Dataset
from segpipe.evaluation import choosing
from segpipe.orchestration import reproduce
from segpipe.recording.artifact_tree import PLANNED
from segpipe.recording.offline import FolderRecorder
from segpipe.runtime import devices, process_group, timing
from segpipe.training import engine, precision, trainer
from segpipe.training.checkpoints import Checkpoints

IMAGE = np.random.default_rng(0).normal(100, 20, (2, 3, 40, 36)).astype(np.float32)
SLOW, FAST = 2.0, 1.0


@pytest.fixture
def dataset(tmp_path):
    return training_set(tmp_path, **{"train.precision": "auto"})


@pytest.fixture
def processor(monkeypatch):
    """Says whether this processor has bf16, whatever it has."""

    def has(*, bf16):
        monkeypatch.setattr(devices, "processor_has_bf16", lambda: bf16)

    return has


@pytest.mark.parametrize(
    ("flags", "limit", "has"),
    [
        ("fpu sse4_1 avx2 avx512f avx512_bf16", "", True),
        ("fpu avx512f amx_bf16", "ALL", True),
        ("fpu avx512f amx_bf16", "AVX512_CORE_BF16", True),
        ("fpu avx512f avx512_vnni", "", False),
        ("fpu avx512f avx512_bf16_later", "", False),
        ("fpu avx512f avx512_bf16 amx_bf16", "AVX512_CORE", False),
        ("fpu avx512f avx512_bf16 amx_bf16", "avx2", False),
    ],
)
def test_a_processor_says_by_its_flags_whether_it_has_bf16(tmp_path, monkeypatch, flags, limit, has):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: avx512_bf16\n")
    monkeypatch.setattr(devices, "PROCESSOR", tmp_path / "cpuinfo")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert devices.processor_has_bf16() is has


def test_a_system_that_does_not_say_counts_as_without(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "PROCESSOR", tmp_path / "none")
    assert not devices.processor_has_bf16()


def choose(dataset, asked="auto"):
    config = with_knobs(dataset[0], train={"precision": asked})
    train = Batches(
        Dataset(dataset[2], dataset[1]).where(split="train"), config.train, torch.device("cpu"), training=True
    )
    model = network(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = precision.choose(model, train, config, process_group.start(config.train))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    return found


@pytest.mark.parametrize(("half", "full", "found"), [(FAST, SLOW, "bf16"), (SLOW, FAST, "fp32"), (FAST, FAST, "fp32")])
def test_a_training_takes_what_is_clearly_faster(dataset, monkeypatch, processor, half, full, found):
    processor(bf16=True)
    step, seconds = precision._step, timing.seconds
    dtypes = []

    def noted(learner, *rest):
        step(learner, *rest)
        dtypes.append(learner.dtype)

    def timed(act):
        assert seconds(act) > 0
        return half if dtypes[-1] == torch.bfloat16 else full

    monkeypatch.setattr(precision, "_step", noted)
    monkeypatch.setattr(timing, "seconds", timed)
    assert choose(dataset) == found
    assert dtypes == [torch.bfloat16, torch.float32] * (1 + timing.TIMES)


@pytest.mark.parametrize(
    ("asked", "bf16", "found"), [("auto", False, "fp32"), ("fp32", True, "fp32"), ("bf16", True, "bf16")]
)
def test_nothing_is_timed_where_there_is_no_choice(dataset, monkeypatch, processor, asked, bf16, found):
    processor(bf16=bf16)
    monkeypatch.setattr(precision, "_step", None)
    assert choose(dataset, asked) == found


def trained(dataset, folder, stop=engine.never, **knobs):
    config, _, path = dataset
    config = with_knobs(config, train={"epochs": 3, **knobs})
    job = trainer.Job(config=config, dataset=path, key="key", checkpoints=folder / "checkpoints", record=folder)
    start = process_group.start(config.train)
    trainer.run(job, Dataset.open(path), start, FolderRecorder(folder), print, Watched(), stop)
    params = json.loads((folder / "params.json").read_text())
    assert params["cfg.hardware.precision"] == params[PLANNED["precision"]]
    return params[PLANNED["precision"]], (folder / "final_model/weights/weights.safetensors").read_bytes()


def test_a_training_in_the_precision_that_was_measured_is_one_that_was_given_it(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "choose", lambda *_: "bf16")
    measured = trained(dataset, tmp_path / "auto")
    monkeypatch.undo()
    assert measured == trained(dataset, tmp_path / "given", precision="bf16")
    assert measured != trained(dataset, tmp_path / "full", precision="fp32")


def test_an_interrupted_training_goes_on_in_its_precision_wherever_it_does(dataset, tmp_path, monkeypatch):
    asked = []

    def fourth():
        asked.append(1)
        return len(asked) == 4

    monkeypatch.setattr(precision, "choose", lambda *_: "bf16")
    with pytest.raises(KeyboardInterrupt):
        trained(dataset, tmp_path / "auto", stop=fourth)
    assert Checkpoints(tmp_path / "auto/checkpoints", "key", print).newest()["planned"]["precision"] == "bf16"
    monkeypatch.setattr(precision, "choose", None)
    continued = trained(dataset, tmp_path / "auto")
    monkeypatch.undo()
    assert continued == trained(dataset, tmp_path / "given", precision="bf16")


def test_a_reproduction_computes_as_it_was_computed(dataset):
    def run(params, tags):
        return SimpleNamespace(data=SimpleNamespace(params=params, tags=tags))

    measured = run({PLANNED["precision"]: "bf16"}, {"segpipe.precision": "fp32"})
    found = reproduce._as_planned(dataset[0], measured)
    assert (found.train.precision, found.evaluate.precision) == ("bf16", "fp32")
    assert reproduce._as_planned(dataset[0], run({}, {})) == dataset[0]


@pytest.mark.parametrize("fit", ["resize", "patch"])
def test_a_model_that_was_measured_in_bf16_runs_in_it_where_the_processor_has_it(processor, fit):
    full = predictor(fit=fit)
    expected = full.segment(IMAGE, 0.5).foreground
    processor(bf16=True)
    half = full.with_precision("bf16").segment(IMAGE, 0.5).foreground
    assert half.dtype == np.float32
    assert not np.array_equal(half, expected)
    np.testing.assert_allclose(half, expected, atol=0.05)
    processor(bf16=False)
    assert np.array_equal(full.with_precision("bf16").segment(IMAGE, 0.5).foreground, expected)


def test_a_model_keeps_the_precision_that_it_was_measured_in(tmp_path, processor):
    processor(bf16=True)
    model = predictor().with_precision("bf16")
    model.save(tmp_path)
    again = type(model).load(tmp_path)
    assert again.spec == model.spec
    assert np.array_equal(again.segment(IMAGE, 0.5).foreground, model.segment(IMAGE, 0.5).foreground)


@pytest.mark.parametrize(("half", "full", "found"), [(FAST, SLOW, "bf16"), (SLOW, FAST, "fp32")])
def test_an_evaluation_takes_what_is_clearly_faster(dataset, monkeypatch, processor, half, full, found):
    processor(bf16=True)
    kept = Dataset(dataset[2], dataset[1])
    seconds = {"bf16": half, "fp32": full}
    asked_of = []

    def noted(one, image):
        assert image.ndim == 4
        asked_of.append(one.spec.precision)

    def timed(act):
        act()
        return seconds[asked_of[-1]]

    monkeypatch.setattr(choosing, "_label", noted)
    monkeypatch.setattr(timing, "seconds", timed)
    model = predictor()
    assert choosing.in_precision(model, kept, "auto").spec.precision == found
    for asked in ("fp32", "bf16"):
        assert choosing.in_precision(model, kept, asked).spec.precision == asked
    processor(bf16=False)
    assert choosing.in_precision(model, kept, "auto").spec.precision == "fp32"


def test_precision_that_is_resolved_says_so_to_everyone():
    assert devices.precision(TrainConfig(precision="bf16", device="cpu")) == "bf16"
    assert devices.precision(TrainConfig(device="cpu")) == "fp32"
