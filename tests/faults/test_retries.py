"""What is tried again, what is not, and a step that takes too long."""

import pytest
from chains import KNOBS, chain, new_chain, results, undisturbed

__all__ = ["chain", "undisturbed"]

LONG = "--train.epochs=600"


@pytest.mark.slow
def test_a_step_whose_artifacts_the_server_could_not_take_is_tried_again(undisturbed, server, tmp_path):
    chain = new_chain(tmp_path, server.uri, extra={"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"})
    kept = server.artifacts.with_name("kept")
    driver = chain.start()
    try:
        driver.until(lambda: any("segpipe.key" in run.data.tags for run in chain.runs("preprocess")))
        server.artifacts.rename(kept)
        server.artifacts.write_text("a file where the folder was")
        driver.until(lambda: chain.runs("preprocess", "FAILED"))
        server.artifacts.unlink()
        kept.rename(server.artifacts)
        assert driver.end() == 0, driver.shown()
    finally:
        chain.kill()
    second, first = chain.runs("preprocess")
    assert (first.info.status, first.data.tags["segpipe.passing"]) == ("FAILED", "true")
    assert (second.info.status, second.data.tags["segpipe.attempt"]) == ("FINISHED", "2")
    assert results(chain) == undisturbed[1]


def test_a_failure_that_would_come_again_is_not_tried_again(chain):
    (chain.home / "raw data" / "images" / "case3.png").write_bytes(b"no picture")
    driver = chain.start()
    assert driver.end() == 1
    assert "case3.png" in driver.told()
    (failed,) = chain.runs("preprocess")
    assert "segpipe.attempt" not in failed.data.tags
    assert "segpipe.passing" not in failed.data.tags
    assert chain.runs("train") == []


@pytest.mark.slow
def test_a_training_that_takes_too_long_is_ended_and_goes_on_with_the_next_start(tmp_path):
    chain = new_chain(tmp_path, knobs=(*KNOBS, LONG))
    try:
        slow = chain.start("--until=train", "--driver.timeout=train=25")
        assert slow.end() == 1, slow.shown()
        assert "train took longer than driver.timeout train=25" in slow.told()
        (run,) = chain.runs("train")
        assert run.info.status == "FAILED"
        assert "driver.timeout" in run.data.tags["segpipe.reason"]
        assert chain.checkpoints()
        assert chain.running() == []
        assert "continues run" in chain.finish("--until=train")
        assert chain.made("train").info.run_id == run.info.run_id
    finally:
        chain.kill()
