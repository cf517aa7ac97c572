"""Two drivers at once on one store."""

import pytest
from chains import KNOBS, STEPS, chain, check_whole, new_chain, undisturbed
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

__all__ = ["chain", "undisturbed"]


@pytest.mark.slow
def test_two_drivers_at_once_both_end_well_and_no_step_is_run_twice(undisturbed, chain, tmp_path):
    chain.finish("--until=preprocess")  # the store itself is there: creating it is another matter
    drivers = [chain.start(), chain.start()]
    for driver in drivers:
        assert driver.end() == 0, driver.shown()
    for step in STEPS:
        assert len(chain.runs(step, "FINISHED")) == 1, step
    parents = [run.info.run_id for run in chain.runs("pipeline", "FINISHED")][:2]
    nested = [run.data.tags.get(MLFLOW_PARENT_RUN_ID) for run in chain.runs(status="FINISHED")]
    assert [nested.count(parent) for parent in parents] == [4, 4]
    assert any("waits for run" in driver.shown() for driver in drivers)
    check_whole(chain, undisturbed[1], tmp_path / "checked")


@pytest.mark.slow
def test_two_drivers_at_once_on_a_store_that_is_not_there_yet_both_end_well(undisturbed, chain, tmp_path):
    drivers = [chain.start(), chain.start()]
    for driver in drivers:
        assert driver.end() == 0, driver.shown()
    assert [len(chain.runs(step, "FINISHED")) for step in STEPS] == [1, 1, 1, 1]
    check_whole(chain, undisturbed[1], tmp_path / "checked")


@pytest.mark.slow
def test_a_driver_goes_on_at_once_where_the_one_it_waits_for_is_killed(tmp_path):
    chain = new_chain(tmp_path, knobs=(*KNOBS, "--train.epochs=300"))
    try:
        first = chain.start("--until=train")
        first.until(chain.checkpoints)
        second = chain.start("--until=train")
        second.until(lambda: "waits for run" in second.shown())
        for process in (first.step("train"), first.process):
            process.kill()
        first.process.wait()
        second.until(lambda: "continues run" in second.shown(), 30)
        assert second.end() == 0, second.shown()
    finally:
        chain.kill()
    (finished,) = chain.runs("train", "FINISHED")
    assert finished.data.metrics["total_epochs_trained"] == 300
    assert chain.running() == []
