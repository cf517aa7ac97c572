"""The folders of trainings without MLflow: a new one for each run, whatever was deleted and who else begins."""

import json
import shutil
import subprocess
import sys

from conftest import new_session

from segpipe.config import settings
from segpipe.files.project import PROJECT
from segpipe.orchestration import resume
from segpipe.recording import offline

NAMED = settings.load(None, {"tracking.run_name": "exp", "train.resume": "never"})


def trained(outputs, epochs=1):
    """A run that has finished."""
    recorder = offline.FolderRecorder(resume.claim_folder(new_session(), NAMED, "a key", outputs))
    with recorder.status("a key"):
        for epoch in range(epochs):
            recorder.metrics({"val_dice": 0.5}, epoch, 0)
    return recorder.root


def epochs_of(root):
    return [json.loads(line)["epoch"] for line in (root / "metrics.jsonl").read_text().splitlines()]


def test_a_run_takes_the_first_free_name_and_never_that_of_another(tmp_path):
    (tmp_path / "experiment").mkdir()
    assert [trained(tmp_path, epochs=3).name for _ in range(3)] == ["exp", "exp_2", "exp_3"]
    shutil.rmtree(tmp_path / "exp")
    assert epochs_of(trained(tmp_path, epochs=2)) == [0, 1]
    assert epochs_of(tmp_path / "exp") == [0, 1]
    assert trained(tmp_path).name == "exp_4"
    assert epochs_of(tmp_path / "exp_3") == [0, 1, 2]
    (tmp_path / "exp_5").write_text("a file of somebody")
    (tmp_path / "exp_6").symlink_to("nowhere")
    assert trained(tmp_path).name == "exp_7"


def test_an_interrupted_run_is_continued_in_its_folder_before_a_free_name_is_taken(tmp_path):
    outputs, config = tmp_path, settings.load(None, {"tracking.run_name": "exp"})
    root = resume.claim_folder(new_session(), config, "a key", outputs)
    (root / offline.RUN).write_text(json.dumps({"key": "a key", "status": "KILLED"}))
    session = new_session()
    assert resume.claim_folder(session, config, "a key", outputs).name == "exp_2", "exp is at work in this process"
    shutil.rmtree(root / offline.RESUME)  # another file is locked than the one that is still open
    assert resume.claim_folder(session, config, "a key", outputs) == root


def test_processes_that_begin_at_once_get_a_folder_each(tmp_path):
    program = (
        "import pathlib, sys\nfrom segpipe.recording import offline\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "for _ in range(100): print(offline.new_folder(pathlib.Path(sys.argv[1]), 'exp').name)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "outputs")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=PROJECT, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    names = [name for process in processes for name in process.communicate(timeout=60)[0].split()]
    assert len(names) == len(set(names)) == 300
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == set(names)
