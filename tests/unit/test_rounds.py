"""The server's part of a round, and the messages that it and its sites exchange."""

import itertools
import math

import numpy as np
import pytest
import safetensors.torch
import torch

from segpipe.config.sections import FederateConfig, ModelConfig
from segpipe.errors import InputError, StepError
from segpipe.federation import messages, norms, rounds
from segpipe.federation.messages import Figures, Reply, Task
from segpipe.federation.rounds import Answer, Failure
from segpipe.models import architectures


def answer(folder, site, weights, examples=1, number=0):
    path = folder / f"{site}.safetensors"
    messages.write(path, Reply(site=site, round=number, examples=examples, seconds=1.0), weights)
    return Answer(messages.header(path, Reply), path)


def test_a_message_is_read_back_to_the_bit_and_leaves_nothing_half_written(tmp_path):
    weights = {"a": torch.randn(3, 2), "count": torch.tensor(7), "half": torch.randn(2).bfloat16()}
    messages.write(tmp_path / "in/one.safetensors", Task(kind="train", round=2, epochs=3), weights)
    assert messages.header(tmp_path / "in/one.safetensors", Task) == Task(kind="train", round=2, epochs=3)
    read = dict(messages.tensors(tmp_path / "in/one.safetensors"))
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) and read[name].dtype == weights[name].dtype for name in read)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["one.safetensors"]


@pytest.mark.parametrize("content", [b"", b"no message", b"\x80\x04pickled", None])
def test_what_is_no_message_is_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    if content is None:
        safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.safetensors: not a message of a federation"):
        messages.header(path, Reply)


def test_figures_that_are_not_finite_are_told_as_they_are(tmp_path):
    reply = Reply(
        site="a", round=1, examples=4, seconds=2, received=Figures(loss=math.inf, samples=3, dice=0.5, cases=2)
    )
    messages.write(tmp_path / "m", reply, {})
    assert messages.header(tmp_path / "m", Reply) == reply


def test_the_mean_is_weighted_by_examples_whatever_the_order(tmp_path):
    rng = np.random.default_rng(3)
    values = {site: rng.normal(size=(2, 3)).astype(np.float32) for site in "abc"}
    examples = {"a": 5, "b": 1, "c": 10}
    answers = [
        answer(tmp_path, s, {"w": torch.from_numpy(values[s]), "n": torch.tensor(examples[s])}, examples[s])
        for s in values
    ]
    by_hand = sum(examples[s] * values[s].astype(np.float64) for s in values) / 16
    for order in itertools.permutations(answers):
        found = rounds.average(order)
        assert found["w"].dtype == torch.float32
        assert found["w"].numpy().tobytes() == by_hand.astype(np.float32).tobytes()
        assert int(found["n"]) == 10


def test_the_mean_of_one_site_is_that_site_to_the_bit(tmp_path):
    weights = {"w": torch.randn(1000), "tiny": torch.tensor([1e-38, 3e38])}
    found = rounds.average([answer(tmp_path, "a", weights, 1237)])
    assert all(torch.equal(found[name], weights[name]) for name in weights)


WANTED = {"w": torch.zeros(2, 2), "n": torch.tensor(0)}
SENT = {
    "answered round 2, not round 1": (WANTED, {"number": 1}),
    "trained on no example": (WANTED, {"examples": 0}),
    "did not send 1 of 2 weights, such as n": ({"w": torch.zeros(2, 2)}, {}),
    "sent v, which the network does not have": ({**WANTED, "v": torch.zeros(1)}, {}),
    r"sent w as \(4,\) float32, not \(2, 2\) float32": ({**WANTED, "w": torch.zeros(4)}, {}),
    r"sent w as \(2, 2\) float64, not \(2, 2\) float32": ({**WANTED, "w": torch.zeros(2, 2).double()}, {}),
    "sent w with values that are not finite": ({**WANTED, "w": torch.full((2, 2), torch.nan)}, {}),
}


@pytest.mark.parametrize("why", SENT)
def test_a_reply_that_is_not_as_it_should_be_is_refused_with_the_reason(tmp_path, why):
    weights, more = SENT[why]
    with pytest.raises(InputError, match=f"^{why}$"):
        rounds.check(answer(tmp_path, "a", weights, **{"examples": 1, **more}), 0, WANTED)
    rounds.check(answer(tmp_path, "a", WANTED), 0, WANTED)


def test_a_quorum_is_more_than_half_or_as_given():
    needed = [rounds.needed(FederateConfig(quorum=0), "x" * n) for n in range(1, 6)]
    assert needed == [1, 2, 2, 3, 3]
    assert rounds.needed(FederateConfig(quorum=1), "abc") == 1
    with pytest.raises(InputError, match=r"federate\.quorum=4: there are 3 sites; ask for no more"):
        rounds.needed(FederateConfig(quorum=4), "abc")


def test_too_few_answers_end_a_round_with_what_became_of_the_others(tmp_path):
    answers, failures = [answer(tmp_path, "a", WANTED)], [Failure("b", "loss is nan"), Failure("c", "not done")]
    rounds.check_quorum(3, 1, answers, failures)
    told = "round 4: 1 of 3 sites answered, federate.quorum needs 2; .*start again.* (b: loss is nan; c: not done)"
    with pytest.raises(StepError, match=told.replace("(", r"\(").replace(")", r"\)")):
        rounds.check_quorum(3, 2, answers, failures)


def test_a_round_that_changes_nothing_is_an_error():
    rounds.check_changed(WANTED, {**WANTED, "w": torch.ones(2, 2)}, 0)
    with pytest.raises(StepError, match="round 1 changed no weight"):
        rounds.check_changed(WANTED, {name: value.clone() for name, value in WANTED.items()}, 0)


def figures(dice, cases=2, loss=1.0, samples=4):
    return Figures(loss=loss, samples=samples, dice=dice, cases=cases)


def test_figures_of_sites_together_are_weighted_by_samples_and_cases():
    found = rounds.together([figures(0.5, 1, 2.0, 10), figures(0.8, 3, 1.0, 30)])
    assert (found.loss, found.samples, found.cases) == (1.25, 40, 4)
    assert found.dice == pytest.approx(0.725)
    assert rounds.together([]) == figures(0.0, 0, 0.0, 0)


def test_rounds_are_compared_by_the_sites_that_validated_both():
    best = {"a": figures(0.5), "b": figures(0.9)}
    assert rounds.better(best, {})
    assert not rounds.better({}, {})
    assert not rounds.better({}, best)
    assert rounds.better({"a": figures(0.6)}, best)  # its mean is lower, but b did not answer
    assert not rounds.better({"a": figures(0.5), "c": figures(1.0)}, best)
    assert not rounds.better({"c": figures(1.0)}, best)


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [
        ("unet", "resnet18"),
        ("unet", "tu-test_convnext"),
        ("unetplusplus", "tu-tf_efficientnet_lite0"),
        ("fpn", "mobilenet_v2"),
        ("segformer", "mit_b0"),
        ("attention_unet", "resnet18"),
        ("manet", "resnet18"),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
def test_norm_layers_are_known_by_their_type(arch, encoder, norm):
    config = ModelConfig(arch=arch, encoder=encoder, encoder_weights="none", norm=norm)
    network = architectures.build(config, 1, 1, 0)
    found, state = norms.names(network), network.state_dict()
    assert found
    assert found <= state.keys()
    kinds = {
        name: type(layer).__name__
        for name, layer in network.named_modules()
        if "Norm" in type(layer).__name__ or "norm" in type(layer).__name__
    }
    by_name = {key for key in state if key.rpartition(".")[0] in kinds}
    assert by_name == found
    assert all(state[name].dim() <= 1 for name in found)
    others = [name for name in state if name not in found]
    assert any(state[name].dim() == 4 for name in others)
