"""A chain that plans first and trains on windows ends, whenever it is killed, as if nothing had happened; its model is
reproduced to the bit.
"""

import signal

import pytest
from chains import MODEL, check_whole, new_chain, results

pytestmark = pytest.mark.slow
KNOBS = (
    "--model.encoder=tu-test_resnet",
    "--train.epochs=8",
    "--train.precision=fp32",
    "--evaluate.precision=fp32",
    "--evaluate.bootstrap_samples=100",
    "--gate.min_patients=1",
    "--gate.beat_trivial=false",
    f"--registry.model_name={MODEL}",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    chain = new_chain(tmp_path_factory.mktemp("planned"), knobs=KNOBS)
    chain.finish("--in-process")
    assert chain.made("train").data.params["cfg.preprocess.fit"] == "patch"
    return chain, results(chain)


@pytest.fixture
def chain(tmp_path):
    made = new_chain(tmp_path, knobs=KNOBS)
    yield made
    made.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["plan", "preprocess", "epochs", "evaluate"])
def test_the_next_start_completes_it(undisturbed, chain, tmp_path, stage, number):
    driver = chain.start()
    driver.until(chain.checkpoints if stage == "epochs" else lambda: driver.step(stage))
    driver.process.send_signal(number)
    driver.end()
    chain.seconds_until_gone()
    shown = chain.finish()
    check_whole(chain, undisturbed[1], tmp_path / "checked")
    if stage != "plan":
        assert "plan: reuse" in shown
    if stage == "epochs":
        assert "continues run" in shown


def test_its_model_is_reproduced_to_the_bit(undisturbed):
    from segpipe.orchestration.reproduce import IDENTICAL

    chain, _ = undisturbed
    driver = chain.start_command("reproduce", f"models:/{MODEL}@champion")
    assert driver.end() == 0, driver.shown()
    assert IDENTICAL in driver.shown()
