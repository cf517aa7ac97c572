"""What is kept of what a step writes."""

import io
import sys

import pytest

from segpipe.config import settings
from segpipe.orchestration import step_log
from segpipe.tracking import connection as stores
from steps.terminal import Terminal as Screen

say = Screen().say


@pytest.fixture
def config(tmp_path):
    return settings.load(None, {"tracking.outputs": str(tmp_path / "out puts")})


@pytest.fixture
def log(tmp_path):
    return step_log.Log(tmp_path / "logs" / "1.log")


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("plain\n\nlines\n", "plain\n\nlines\n"),
        ("no end", "no end\n"),
        ("\x1b[31mred\x1b[0m \x1b]8;;http://x\x1b\\link\n", "red link\n"),
        ("10 %\r20 %\r30 %\ndone\n", "30 %\ndone\n"),
        ("\r\x1b[2Kbar 1\r\x1b[2Kbar 2\r\x1b[2K\nabove\n", "above\n"),
        ("windows\r\n", "windows\n"),
        ("at http://me:secret@example.org/x\n", "at http://***@example.org/x\n"),
        ("épée ü 脳\n", "épée ü 脳\n"),
    ],
)
def test_lines_are_kept_as_they_stay_on_a_terminal(log, written, kept):
    for character in written:
        log.write(character)
    assert log.text() == kept


def test_a_bar_drawn_for_hours_takes_no_memory(log):
    for n in range(1000):
        log.write(f"\r{n} of many")
    assert len(log.line) < 20
    assert log.text() == "999 of many\n"


def test_only_the_last_megabyte_is_kept_in_whole_lines(log, monkeypatch):
    monkeypatch.setattr(step_log, "LARGEST", 1000)
    for n in range(1000):
        log.write(f"line {n}\n")
        assert not log.path.exists() or log.path.stat().st_size <= 2000
    lines = log.text().splitlines()
    assert lines == [f"line {n}" for n in range(1000 - len(lines), 1000)]
    assert 900 < len(log.text()) <= 1000


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    log = step_log.Log(tmp_path / "file" / "logs" / "1.log")
    log.write("a line\n")
    log.write("another\n")
    assert "Not a directory" in log.refused
    assert log.text() == ""


def test_two_processes_can_write_one_log(log):
    other = step_log.Log(log.path)
    log.write("one\n")
    other.write("two\n")
    log.write("three\n")
    assert log.text() == "one\ntwo\nthree\n"


def test_a_continued_run_goes_on_in_its_own_log(log, tmp_path):
    log.write("continues\n")
    log.move(tmp_path / "logs" / "2.log", "earlier\n")
    log.write("more\n")
    assert (tmp_path / "logs" / "2.log").read_text() == "earlier\ncontinues\nmore\n"
    assert not (tmp_path / "logs" / "1.log").exists()
    killed = tmp_path / "logs" / "3.log"
    killed.write_text("killed here\n")
    log.move(killed, "an older attempt\n")
    assert log.text() == "killed here\nearlier\ncontinues\nmore\n"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_stderr_stays_what_it_is_and_inner_steps_have_logs_of_their_own(config, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with step_log.joining(config.tracking.outputs, "outer") as outer:
        assert sys.stderr.isatty()
        assert sys.stderr.encoding == "utf-8"
        say("before")
        with step_log.joining(config.tracking.outputs, "inner") as inner:
            say("inside")
            assert inner.text() == "inside\n"
        say("after")
        assert outer.text() == "before\nafter\n"
    assert sys.stderr is terminal
    say("later")
    assert terminal.getvalue() == "before\ninside\nafter\nlater\n"
    assert step_log.path(config.tracking.outputs, "outer").read_text() == "before\nafter\n"


def test_a_steps_log_is_an_artifact_with_its_reason_and_its_tail_is_found(store, config):
    import mlflow

    from segpipe.tracking import artifacts, runs

    def fails(told):
        with (
            runs.run(stores.Store(), "evaluate", config) as run,
            step_log.keeping("evaluate", config.tracking.outputs, say, stores.Store()),
        ):
            for n in range(20):
                say(f"line {n}")
            told.append(client.get_run(run.info.run_id))
            assert step_log.tail(told[0])[-1] == "line 19"
            raise ZeroDivisionError("division by zero")

    client, told = mlflow.MlflowClient(), []
    with pytest.raises(ZeroDivisionError):
        fails(told)
    (run,) = told
    reason = "segpipe evaluate: ZeroDivisionError: division by zero"
    kept = artifacts.local(f"runs:/{run.info.run_id}/{step_log.ARTIFACT}").read_text().splitlines()
    assert kept == [*(f"line {n}" for n in range(20)), reason]
    assert step_log.tail(run) == kept[-step_log.TAIL :]
    assert list(step_log.path(config.tracking.outputs, "any").parent.iterdir()) == []


def test_a_step_that_says_nothing_has_no_log(store, config):
    import mlflow

    from segpipe.tracking import runs

    with (
        runs.run(stores.Store(), "evaluate", config) as run,
        step_log.keeping("evaluate", config.tracking.outputs, say, stores.Store()),
    ):
        pass
    assert step_log.tail(mlflow.MlflowClient().get_run(run.info.run_id)) == []
