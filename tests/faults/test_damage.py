"""Artifacts that were damaged after they were made are found before they are reused."""

import os
import shutil

import pytest
from chains import STEPS, check_whole, new_chain, undisturbed

__all__ = ["undisturbed"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    """Another byte in the middle, size and time of the change as before."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


DAMAGES = {
    "a cut array": ("preprocess", "dataset/train_images.npy", cut, "dataset/train_images.npy is cut short"),
    "a deleted table": ("evaluate", "evaluation/cases.csv", os.remove, "evaluation/cases.csv is missing"),
    "a flipped byte in the weights": (
        "train",
        "final_model/weights/weights.safetensors",
        flip,
        "final_model/weights/weights.safetensors is not what was written",
    ),
    "a deleted inventory": (
        "register",
        "register/inventory.json",
        os.remove,
        "register/inventory.json is missing",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_artifact_is_told_by_the_plan(undisturbed, tmp_path, what):
    chain, (step, file, spoil, told) = undisturbed[0], DAMAGES[what]
    path = chain.artifacts(step) / file
    kept = shutil.copy2(path, tmp_path)
    spoil(path)
    try:
        planned = chain.finish("--plan")
    finally:
        shutil.copy2(kept, path)
    (line,) = [line for line in planned.splitlines() if line.startswith(f"{step}: ")]
    assert line.startswith(f"{step}: run: because")
    assert told in line


def test_a_plan_runs_nothing_and_reuses_what_is_whole(undisturbed):
    chain = undisturbed[0]
    before = len(chain.runs())
    planned = chain.finish("--plan")
    for step in STEPS:
        assert f"{step}: reuse {chain.made(step).info.run_id}" in planned
    assert len(chain.runs()) == before


@pytest.mark.slow
@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_artifact_is_made_again(undisturbed, tmp_path, what):
    chain, (step, file, spoil, told) = new_chain(tmp_path), DAMAGES[what]
    try:
        chain.finish()
        damaged = chain.artifacts(step)
        spoil(damaged / file)
        again = chain.finish()
    finally:
        chain.kill()
    assert told in again
    assert [name for name in STEPS if f"{name}: run: because" in again] == [step]
    assert chain.artifacts(step) != damaged
    check_whole(chain, undisturbed[1], tmp_path / "checked")
