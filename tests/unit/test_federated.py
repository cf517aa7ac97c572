"""Federations as trainings: whole ones, in this process."""

import json
import math
import shutil
from functools import partial
from itertools import chain, repeat

import pytest
import torch
from conftest import Watched, training_set, with_knobs, write_sites

from segpipe.data.dataset import Dataset
from segpipe.errors import InputError, StepError
from segpipe.federation import federated, messages, simulated, site
from segpipe.federation.messages import Task
from segpipe.recording.offline import FolderRecorder
from segpipe.runtime import process_group
from segpipe.training import engine, trainer


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("sites")
    write_sites(root / "sites")
    return training_set(root, **{"data.root": str(root / "sites"), "train.epochs": "3"})


def trained(dataset, folder, stop=engine.never, train=(), model=(), augment=(), **federate):
    config, _, path = dataset
    config = with_knobs(config, federate=federate, train=dict(train), model=dict(model), augment=dict(augment))
    job = trainer.Job(config=config, dataset=path, key="key", checkpoints=folder / "checkpoints", record=folder)
    said, watched, accelerator = [], Watched(), process_group.start(config.train)
    run = federated.run if config.federate.averages else trainer.run
    run(job, Dataset.open(path), accelerator, FolderRecorder(folder), said.append, watched, stop)
    return said, watched


def weights(folder):
    return (folder / "final_model/weights/weights.safetensors").read_bytes()


def rounds_of(folder):
    return json.loads((folder / "federation/rounds.json").read_text())


def history(folder):
    timed = {"epoch_time_seconds", "images_per_second", "data_wait_share"}
    found = json.loads((folder / "final_model/training_history/training_history.json").read_text())
    return [{name: value for name, value in row.items() if name not in timed} for row in found]


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedbn"])
def test_one_site_is_a_central_training_to_the_bit(dataset, tmp_path, strategy, ema):
    trained(dataset, tmp_path / "c", strategy="central", sites=("b",), train={"ema_decay": ema})
    trained(dataset, tmp_path / "f", strategy=strategy, sites=("b",), mu=0.0, train={"ema_decay": ema})
    assert weights(tmp_path / "f") == weights(tmp_path / "c")
    assert history(tmp_path / "f") == history(tmp_path / "c")
    table = "final_model/validation/cases.csv"
    assert (tmp_path / "f" / table).read_text() == (tmp_path / "c" / table).read_text()


def test_rounds_of_several_epochs_are_those_of_a_central_training(dataset, tmp_path):
    constant = {"schedule": "constant", "epochs": 4}
    trained(dataset, tmp_path / "c", sites=("b",), train=constant)
    trained(dataset, tmp_path / "f", strategy="fedavg", sites=("b",), rounds=2, local_epochs=2, train=constant)
    central, federation = history(tmp_path / "c"), history(tmp_path / "f")
    assert [row["val_loss"] for row in federation] == [row["val_loss"] for row in central[1::2]]
    trained(dataset, tmp_path / "g", strategy="fedavg", sites=("b",), local_epochs=3, train=constant)
    assert [row["val_loss"] for row in history(tmp_path / "g")] == [central[n]["val_loss"] for n in (2, 3)]
    assert [one["epochs"] for one in rounds_of(tmp_path / "g")] == [3, 1]


def test_the_same_cases_at_every_site_are_one_site(tmp_path):
    root = write_sites(tmp_path / "sites")
    for n in range(8, 24):
        for kind in ("images", "masks"):
            shutil.copy(root / kind / f"case{n % 8}.png", root / kind / f"case{n}.png")
    copies = training_set(tmp_path, **{"data.root": str(root), "check.duplicates": "warn"})
    whole = {"train": {"batch_size": 4, "epochs": 2}, "augment": {"enabled": False}}  # one batch an epoch
    trained(copies, tmp_path / "one", strategy="fedavg", sites=("a",), **whole)
    trained(copies, tmp_path / "all", strategy="fedavg", **whole)
    one, every = history(tmp_path / "one"), history(tmp_path / "all")
    for name in ("train_loss", "val_loss", "val_dice"):
        assert [row[name] for row in every] == pytest.approx([row[name] for row in one], rel=1e-4)


def test_fedprox_without_a_pull_is_fedavg_and_with_one_is_not(dataset, tmp_path):
    steps = {"train": {"batch_size": 2, "epochs": 2}}  # the first of a round is where the pull is zero
    trained(dataset, tmp_path / "avg", strategy="fedavg", **steps)
    trained(dataset, tmp_path / "zero", strategy="fedprox", mu=0.0, **steps)
    trained(dataset, tmp_path / "prox", strategy="fedprox", mu=10.0, **steps)
    assert weights(tmp_path / "zero") == weights(tmp_path / "avg") != weights(tmp_path / "prox")


@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_the_pull_is_the_gradient_of_half_mu_times_the_squared_distance(dataset, clip_norm):
    config, *_ = dataset
    config = with_knobs(
        config, train={"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "clip_norm": clip_norm}
    )
    learner = site.Learner(
        trainer.build(config, dataset[1], pretrained=False), config.train, process_group.start(config.train)
    )
    torch.manual_seed(0)
    before = [value.detach().clone() for value in learner.network.parameters()]
    anchors = [value + torch.randn_like(value) for value in before]
    images = torch.randn(4, 1, 32, 32)

    def loss():
        return learner.network(images).square().mean()

    mu = 0.3
    term = sum(
        (value - anchor).square().sum() for value, anchor in zip(learner.network.parameters(), anchors, strict=True)
    )
    wanted = torch.autograd.grad(loss() + mu / 2 * term, list(learner.network.parameters()))
    norm = math.sqrt(sum(float(value.square().sum()) for value in wanted))
    scale = min(1.0, clip_norm / norm) if clip_norm else 1.0
    loss().backward()
    learner.pull = mu, anchors
    learner.step(config.train, 0.1)
    for old, now, gradient in zip(before, learner.network.parameters(), wanted, strict=True):
        torch.testing.assert_close(now.detach(), old - 0.1 * scale * gradient, rtol=1e-4, atol=1e-5)


def test_norm_layers_of_fedbn_stay_with_their_site_and_their_mean_is_served(dataset, tmp_path):
    trained(dataset, tmp_path, strategy="fedbn", train={"epochs": 2})
    kept = sorted((tmp_path / "checkpoints/sites").glob("*/norms_000001.safetensors"))
    layers = [dict(messages.tensors(path)) for path in kept]
    assert len(layers) == 3
    mean = "network.network.encoder.model.bn1.running_mean"
    assert mean in layers[0]
    assert not torch.equal(layers[0][mean], layers[1][mean])
    metrics, told = json.loads((tmp_path / "metrics.json").read_text()), history(tmp_path)
    assert metrics["best_val_dice"] not in [row["val_dice"] for row in told]


def test_a_site_that_fails_is_named_and_the_others_go_on(dataset, tmp_path, monkeypatch):
    perform = simulated.Site.perform

    def fail(self, message, reply, *more):
        task = messages.header(message, Task)
        if self.place.name == "b" and task.round == 1:
            raise RuntimeError("the disc is full\nat once")
        perform(self, message, reply, *more)

    monkeypatch.setattr(simulated.Site, "perform", fail)
    said, _ = trained(dataset, tmp_path, strategy="fedavg")
    assert said == ["round 2: without b: the disc is full at once"]
    done = rounds_of(tmp_path)
    contributors = ("".join(one["site"] for one in found["sites"] if not one["failed"]) for found in done)
    assert list(contributors) == ["abc", "ac", "abc"]
    assert done[1]["sites"][1]["failed"] == "the disc is full at once"
    assert [one["validated"] is not None for one in done[0]["sites"]] == [True, False, True]
    assert all(one["bytes_up"] > 1000 for one in done[0]["sites"])


def damaged(how):
    """A site's answer with other weights."""

    def perform(self, message, reply, *more):
        done(self, message, reply, *more)
        if self.place.name == "c" and messages.header(message, Task).kind == "train":
            header, sent = messages.header(reply, messages.Reply), dict(messages.tensors(reply))
            name = "network.network.segmentation_head.0.weight"
            sent[name] = how(sent[name])
            messages.write(reply, header, sent)

    done = simulated.Site.perform
    return perform


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (lambda value: value[..., :1], "sent network.network.segmentation_head.0.weight as"),
        (
            lambda value: value * torch.nan,
            "sent network.network.segmentation_head.0.weight with values that are not finite",
        ),
        (lambda value: value.double(), "float64, not"),
    ],
)
def test_weights_that_are_not_as_they_should_be_are_not_averaged(dataset, tmp_path, monkeypatch, how, why):
    monkeypatch.setattr(simulated.Site, "perform", damaged(how))
    said, _ = trained(dataset, tmp_path, strategy="fedavg", rounds=2)
    assert len(said) == 2
    assert all(why in line and "without c" in line for line in said)


def test_below_the_quorum_it_stops_and_goes_on_from_there(dataset, tmp_path, monkeypatch):
    trained(dataset, tmp_path / "whole", strategy="fedavg", quorum=3)
    perform = simulated.Site.perform

    def fail(self, message, reply, *more):
        if self.place.name == "a" and messages.header(message, Task).round == 1:
            raise OSError("gone")
        perform(self, message, reply, *more)

    monkeypatch.setattr(simulated.Site, "perform", fail)
    with pytest.raises(StepError, match=r"round 2: 2 of 3 sites answered, .* needs 3; .*\(a: gone\)"):
        trained(dataset, tmp_path / "again", strategy="fedavg", quorum=3)
    assert [len(found["sites"]) for found in rounds_of(tmp_path / "again")] == [3, 3]
    monkeypatch.setattr(simulated.Site, "perform", perform)
    trained(dataset, tmp_path / "again", strategy="fedavg", quorum=3)
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    assert history(tmp_path / "again") == history(tmp_path / "whole")


def test_a_deadline_that_is_too_short_is_told(dataset, tmp_path):
    with pytest.raises(StepError, match=r"0 of 3 sites answered.*a: not done after 1e-06 s \(federate.deadline\)"):
        trained(dataset, tmp_path, strategy="fedavg", deadline=1e-6, train={"batch_size": 2})
    trained(dataset, tmp_path, strategy="fedavg", train={"batch_size": 2})
    trained(dataset, tmp_path / "whole", strategy="fedavg", train={"batch_size": 2})
    assert weights(tmp_path) == weights(tmp_path / "whole")


@pytest.mark.parametrize(("strategy", "optimizer"), [("fedavg", "keep"), ("fedprox", "reset"), ("fedbn", "keep")])
def test_a_federation_that_is_stopped_anywhere_ends_with_the_same_weights(dataset, tmp_path, strategy, optimizer):
    knobs = {"strategy": strategy, "optimizer": optimizer, "train": {"batch_size": 2, "epochs": 2, "ema_decay": 0.9}}
    trained(dataset, tmp_path / "whole", **knobs)
    for moment in (1, 2, 4, 7, 9):
        with pytest.raises(KeyboardInterrupt):
            trained(dataset, tmp_path / str(moment), partial(next, chain(repeat(False, moment), repeat(True))), **knobs)
        trained(dataset, tmp_path / str(moment), **knobs)
        assert weights(tmp_path / str(moment)) == weights(tmp_path / "whole")
        assert history(tmp_path / str(moment)) == history(tmp_path / "whole")


def test_what_sites_can_not_do_is_refused(dataset, tmp_path):
    with pytest.raises(InputError, match=r"federate\.sites: no case is of z; the data set has a, b, c"):
        trained(dataset, tmp_path, strategy="fedavg", sites=("z",))
    with pytest.raises(InputError, match=r"federate\.quorum=4: there are 3 sites"):
        trained(dataset, tmp_path, strategy="fedavg", quorum=4)


def test_a_data_set_without_sites_and_a_site_without_training_cases_are_refused(tmp_path):
    plain = training_set(tmp_path / "plain")
    with pytest.raises(InputError, match="the data set names no sites"):
        trained(plain, tmp_path, strategy="fedavg")
    root = write_sites(tmp_path / "sites")
    text = (root / "cases.csv").read_text()
    (root / "cases.csv").write_text(text.replace("c,train", "c,test"), encoding="utf-8")
    uneven = training_set(tmp_path, **{"data.root": str(root)})
    with pytest.raises(InputError, match="site c: the train split has no case"):
        trained(uneven, tmp_path, strategy="fedavg")


def test_local_training_sees_its_own_site_alone(dataset, tmp_path):
    trained(dataset, tmp_path, strategy="local", sites=("b",))
    table = (tmp_path / "final_model/validation/cases.csv").read_text().splitlines()
    assert {line.split(",")[2] for line in table[1:]} == {"b"}
