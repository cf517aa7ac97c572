"""How OpenMP's threads wait, as libgomp itself tells when a process loads it."""

import os
import re
import subprocess
import sys

import pytest
from conftest import TINY, write_folder

from segpipe.files.project import PROJECT
from segpipe.runtime import cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch comes with another OpenMP")
ALONE = "from segpipe.runtime import cores; cores.share(); import torch"


def told(*program, **variables):
    """The spin count of each process that has loaded libgomp, in a run of a program that succeeds."""
    own = {name: value for name, value in os.environ.items() if name not in cores.SPINS}
    environment = {**own, "OMP_DISPLAY_ENV": "VERBOSE", **variables}
    done = subprocess.run(
        [sys.executable, *program],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)


@pytest.mark.parametrize(("variables", "count"), [({}, cores.SHARED["GOMP_SPINCOUNT"]), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_soon_give_up_a_core_unless_they_are_told_when(variables, count):
    assert {*told("-c", ALONE, **variables)} == {count}


@pytest.mark.parametrize("variables", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"KMP_BLOCKTIME": "1"}])
def test_other_words_of_the_users_are_left_to_libgomp(variables):
    assert cores.SHARED["GOMP_SPINCOUNT"] not in told("-c", ALONE, **variables)


def test_a_step_and_its_workers_load_torch_that_way(tmp_path):
    raw = write_folder(tmp_path / "raw")
    data = ["--data.format=folder", f"--data.root={raw}", f"--tracking.outputs={tmp_path / 'outputs'}"]
    found = told("-m", "steps.train", "--no-mlflow", *data, *TINY, "--train.processes=2", "--train.epochs=1")
    assert len(found) >= 3  # the step's own process, and two that train
    assert {*found} == {cores.SHARED["GOMP_SPINCOUNT"]}


@pytest.mark.parametrize("step", ["train", "worker", "evaluate", "register", "predict", "serve", "demo_page"])
def test_a_step_has_torch_not_yet_when_it_says_how_to_wait(step):
    program = f"import sys, steps.{step}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True)
