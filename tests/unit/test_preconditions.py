"""What can be judged before the first step is: encoders by their names, devices by what drivers show."""

import pytest
import torch
from conftest import with_knobs

from segpipe.config.sections import Config, ModelConfig
from segpipe.errors import InputError
from segpipe.models import architectures, encoders
from segpipe.orchestration import preconditions
from segpipe.orchestration.chain import Choice
from segpipe.orchestration.keys import Key
from segpipe.runtime import devices

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
CUDA, FP16 = {"device": "cuda"}, {"precision": "fp16"}


def test_the_names_are_those_of_the_pinned_smp():
    import segmentation_models_pytorch as smp

    known = smp.encoders.encoders
    assert sorted(encoders.OWN) == sorted(smp.encoders.get_encoder_names())
    assert {n for n in known if "imagenet" not in known[n]["pretrained_settings"]} == {*encoders.WITHOUT_IMAGENET}


@pytest.mark.parametrize("arch", encoders.UNFIT)
@pytest.mark.parametrize("encoder", ["vgg11", "densenet121", "xception", "inceptionv4", "mit_b0"])
def test_a_pair_is_refused_where_it_can_not_be_built(arch, encoder):
    """Which the same pair shows where its own check is passed over."""
    config = ModelConfig(arch=arch, encoder=encoder)
    row = architectures.ARCHITECTURES[arch]
    try:
        architectures._build_network(config, row, 1, 1)
    except Exception:
        with pytest.raises(InputError, match=f"model.arch={arch} model.encoder={encoder}: .*; try another encoder"):
            encoders.check(config)
    else:
        encoders.check(config)


def test_a_coarser_pan_dilates_nothing():
    config = ModelConfig(arch="pan", encoder="vgg11", options={"encoder_output_stride": 32})
    assert architectures.build(config, 1, 1, seed=0)


def test_the_driver_and_torch_see_the_same():
    assert devices.driver_has_gpu() == torch.cuda.is_available()


@without_gpu
@pytest.mark.parametrize(
    ("command", "knobs", "told"),
    [
        *((name, CUDA, r"train\.device=cuda: no GPU found") for name in preconditions.ON_DEVICE),
        ("train", FP16, r"train\.precision=fp16 needs a GPU"),
        ("train", {"device": "cpu", **FP16}, r"train\.precision=fp16 needs a GPU"),
    ],
)
def test_a_device_that_is_not_there_is_refused_to_who_needs_it(command, knobs, told):
    with pytest.raises(InputError, match=told):
        preconditions.check(command, with_knobs(Config(), train=knobs))


@pytest.mark.parametrize(("command", "knobs"), [("preprocess", CUDA), ("register", CUDA), ("evaluate", FP16)])
def test_who_needs_no_device_is_not_asked_for_one(command, knobs):
    preconditions.check(command, with_knobs(Config(), train=knobs))


@without_gpu
@pytest.mark.parametrize(
    ("to_run", "knobs", "refused"),
    [
        ("", CUDA, False),
        ("preprocess", CUDA, False),
        ("register", CUDA, False),
        ("evaluate", CUDA, True),
        ("evaluate", FP16, False),
        ("train", FP16, True),
        ("fpn_seed1", CUDA, True),
        ("fpn_seed1", FP16, True),
    ],
)
def test_what_is_reused_needs_no_device(to_run, knobs, refused):
    def coming():
        for name in ("preprocess", "train", "fpn_seed1", "evaluate", "register"):
            yield name, Choice(Key({}), None if name == to_run else "a run", "")

    config = with_knobs(Config(), train=knobs)
    if refused:
        with pytest.raises(InputError, match="GPU"):
            preconditions.check_device(config, coming)
    else:
        preconditions.check_device(config, coming)
