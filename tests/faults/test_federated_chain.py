"""A chain whose training is a federation ends, whenever and however it is killed, as if nothing had happened; its model
is reproduced to the bit.
"""

import signal
import time

import numpy as np
import pytest
from chains import KNOBS, check_whole, name_of, new_chain, results
from conftest import write_sites

pytestmark = pytest.mark.slow
FEDERATED = (*KNOBS, "--train.batch_size=2", "--federate.strategy=fedbn", "--train.ema_decay=0.9")
MOMENTS = 20
SECONDS = 8.0  # about as long as the rounds take
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def federated_chain(folder):
    chain = new_chain(folder, knobs=FEDERATED)
    write_sites(chain.home / "raw data")
    return chain


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    chain = federated_chain(tmp_path_factory.mktemp("federated"))
    chain.finish("--in-process")
    return chain, results(chain)


@pytest.fixture
def chain(tmp_path):
    made = federated_chain(tmp_path)
    yield made
    made.kill()


def moments():
    """Seconds after the training began, a signal, and whether the driver gets it or the training."""
    rng = np.random.default_rng(17)
    return [(float(rng.uniform(0, SECONDS)), SIGNALS[n % 3], ("driver", "train")[n // 3 % 2]) for n in range(MOMENTS)]


@pytest.mark.parametrize(
    ("seconds", "number", "target"), moments(), ids=lambda value: getattr(value, "name", str(value)[:4])
)
def test_the_next_start_ends_with_the_same_weights(undisturbed, chain, tmp_path, seconds, number, target):
    driver = chain.start()
    step = driver.until(lambda: driver.step("train"))
    time.sleep(seconds)
    if target == "driver":
        driver.process.send_signal(number)
    elif name_of(step):
        step.send_signal(number)
    driver.end()
    chain.seconds_until_gone()
    chain.finish()
    check_whole(chain, undisturbed[1], tmp_path / "checked")
    sites = [run for run in chain.runs() if "segpipe.site" in run.data.tags]
    assert sorted(run.data.tags["segpipe.site"] for run in sites) == ["a", "b", "c"]
    assert {run.info.status for run in sites} == {"FINISHED"}


def test_its_model_is_reproduced_to_the_bit(undisturbed):
    from segpipe.orchestration.reproduce import IDENTICAL

    chain, _ = undisturbed
    driver = chain.start_command("reproduce", "models:/faults@champion")
    assert driver.end() == 0, driver.shown()
    assert IDENTICAL in driver.shown()
