"""`python -m steps.serve` as a process, over HTTP: what it refuses, swaps, survives, and how it ends."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import disc, wait_for
from prometheus_client.parser import text_string_to_metric_families
from scoring import logged, picture, spec, text

from segpipe.files.project import PROJECT

JSON = {"Content-Type": "application/json"}
MB = 1_000_000


class Server:
    """`python -m steps.serve` of the champion, on a free port."""

    def __init__(self, home: Path, *knobs: str) -> None:
        self.log = home / "serve.log"
        program = [sys.executable, "-m", "steps.serve", "--registry.model_name=tiny", "--serving.port=0", *knobs]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(program, cwd=PROJECT, stdout=log, stderr=log, text=True)
        wait_for(self.process, lambda: "serving " in self.log.read_text())
        self.port = int(re.search(r"on http://127\.0\.0\.1:(\d+)$", self.log.read_text(), re.MULTILINE)[1])

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method, path, body=None, headers=None, **more):
        """Status, headers and content of one answer."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, headers or {}, **more)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def metric(self, sample, /, **labels):
        families = text_string_to_metric_families(self.ask("GET", "/metrics")[2].decode())
        samples = (s for family in families for s in family.samples)
        return [s.value for s in samples if s.name == sample and labels.items() <= s.labels.items()]

    def lines(self, pattern):
        return [line for line in self.log.read_text().splitlines() if re.search(pattern, line)]


def until(so, seconds=30):
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def versions(store, tmp_path_factory):
    """Version 1, the champion, and version 2 of the model `tiny`."""
    from mlflow import MlflowClient

    client = MlflowClient()
    client.create_registered_model("tiny")
    for name in ("one", "two"):
        uri = logged(spec(), tmp_path_factory.mktemp(name) / "segpipe")
        client.create_model_version("tiny", uri, model_id=uri.removeprefix("models:/"))
    client.set_registered_model_alias("tiny", "champion", "1")
    return client


@pytest.fixture(scope="module")
def server(versions, tmp_path_factory):
    home = tmp_path_factory.mktemp("server")
    found = Server(home, "--serving.max_body_mb=4", "--serving.poll_seconds=0.2", "--serving.max_batch=32")
    yield found
    if found.process.poll() is None:
        found.process.kill()
        found.process.wait()


@pytest.fixture(scope="module")
def good():
    return json.dumps({"dataframe_records": [{"image": text(picture(disc(40, 36, 0)[0]))}]}).encode()


def records(*rows, **params):
    return json.dumps({"dataframe_records": rows, "params": params}).encode()


def test_it_says_what_it_serves_and_answers(server, good):
    assert server.lines(r"^serving models:/tiny@champion version 1 on http://127\.0\.0\.1:\d+$")
    status, headers, content = server.ask("POST", "/invocations", good, JSON)
    assert (status, headers["x-model-version"]) == (200, "1")
    assert json.loads(content)["predictions"][0]["foreground_voxels"] >= 0
    assert json.loads(server.ask("GET", "/version")[2])["name"] == "tiny"


FAULTS = {
    "malformed JSON": (b'{"dataframe_records": [', JSON, 400, "the body is not JSON (line 1, column 24)"),
    "empty body": (b"", JSON, 400, "the body is not JSON (line 1, column 1)"),
    "a list": (b"[]", JSON, 400, "the body must be a JSON object"),
    "none of the fields": (b"{}", JSON, 400, "expected exactly one of dataframe_records, "),
    "no Content-Type": (b"{}", {}, 415, "Content-Type must be application/json, in UTF-8"),
    "CSV": (b"image\nabc\n", {"Content-Type": "text/csv"}, 415, "Content-Type must be application/json, in UTF-8"),
    "parquet": (b"PAR1", {"Content-Type": "application/vnd.apache.parquet"}, 415, "Content-Type must be"),
    "unknown column": (records({"picture": "abc"}), JSON, 400, "'picture'"),
    "unknown parameter": (records({"image": "abc"}, treshold=1), JSON, 400, "(nearest: threshold)"),
    "parameter of another type": (records({"image": "abc"}, tta="yes"), JSON, 400, "parameter tta: not a boolean"),
    "threshold above 1": (records({"image": "abc"}, threshold=2), JSON, 400, "threshold 2.0 is not between 0 and 1"),
    "unknown output": (records({"image": "abc"}, output="jpeg"), JSON, 400, "output 'jpeg'"),
    "min_area below 0": (records({"image": "abc"}, min_area=-1), JSON, 400, "min_area -1 is below 0"),
    "no column": (records({}), JSON, 400, "row 0: column 'image' is missing"),
    "no row": (records(), JSON, 400, "dataframe_records must be a list of objects, one a row"),
    "a file cut short": (records({"image": text(picture(disc(40, 36, 0)[0])[:300])}), JSON, 400, "row 0: image: "),
    "not base64": (records({"image": "a path.png"}), JSON, 400, "row 0: "),
    "not an image": (records({"image": "aGVsbG8="}), JSON, 400, "row 0: "),
    "NaN": (b'{"instances": [[[[NaN]]]]}', JSON, 400, "NaN is not JSON; every number must be finite"),
    "too many rows": (records(*[{"image": "abc"}] * 33), JSON, 400, "33 rows"),
    "too large": (b" " * (4 * MB + 1), JSON, 413, "the body is larger than serving.max_body_mb, 4 MB"),
}


@pytest.mark.parametrize(("body", "headers", "status", "told"), FAULTS.values(), ids=FAULTS)
def test_a_fault_has_its_status_one_line_and_the_request_id(server, body, headers, status, told):
    found, answered, content = server.ask("POST", "/invocations", body, {**headers, "X-Request-ID": f"fault-{status}"})
    answer = json.loads(content)
    assert found == status, answer
    assert told in answer["message"]
    assert answer["request_id"] == answered["x-request-id"] == f"fault-{status}"
    assert content.count(b"\n") == 1
    assert "stack_trace" not in answer


def test_one_bad_row_of_two_has_its_error_alone(server, good):
    row = json.loads(good)["dataframe_records"][0]
    status, _, content = server.ask("POST", "/invocations", records(row, {"image": "!"}), JSON)
    first, second = json.loads(content)["predictions"]
    assert (status, first["error"], second["mask"]) == (200, None, None)
    assert "base64" in second["error"]


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(server):
    head = "POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(f"{head}Content-Length: {10**12}\r\n\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_body_in_parts_is_refused_and_not_kept(server):
    def anonymous():
        lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000

    before = anonymous()
    for _ in range(3):
        parts = (b" " * MB for _ in range(40))
        status, _, content = server.ask("POST", "/invocations", parts, JSON, encode_chunked=True)
        assert (status, json.loads(content)["error_code"]) == (413, "REQUEST_TOO_LARGE")
    assert anonymous() - before < 20


def test_a_connection_is_kept_over_good_and_bad_requests(server, good):
    with contextlib.closing(server.connect()) as connection:
        connection.connect()
        opened = connection.sock
        for body, status in ((good, 200), (b"{", 400), (good, 200)):
            connection.request("POST", "/invocations", body, JSON)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
        assert connection.sock is opened


def test_metrics_and_log_know_of_every_request(server, good):
    before = server.metric("segpipe_rows_total")[0]
    server.ask("POST", "/invocations", good, {**JSON, "X-Request-ID": "counted"})
    assert server.metric("segpipe_rows_total")[0] == before + 1
    assert server.metric("segpipe_requests_total", path="/invocations", status="413")[0] == 5
    assert server.metric("segpipe_model_info", name="tiny", version="1") == [1]
    assert len(server.lines(rf" POST /invocations 200 \d+ ms 1 row {len(good)} bytes counted$")) == 1


def test_a_new_champion_takes_over_without_a_lost_request(server, versions, good):
    answers, stop = [], threading.Event()

    def client():
        with contextlib.closing(server.connect()) as connection:
            while not stop.is_set():
                connection.request("POST", "/invocations", good, JSON)
                answer = connection.getresponse()
                answer.read()
                answers.append((answer.status, answer.getheader("X-Model-Version")))

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) > 20)
    versions.set_registered_model_alias("tiny", "champion", "2")
    until(lambda: sum(version == "2" for _, version in answers) > 20)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(answers) == {(200, "1"), (200, "2")}
    assert all(thread.is_alive() is False for thread in threads)
    assert server.lines("^models:/tiny@champion is version 2 now, in the place of version 1$")
    assert server.metric("segpipe_swaps_total") == [1]


def test_a_registry_that_does_not_answer_is_told_once_and_followed_again(server, versions, store, good):
    database = store / "mlflow.db"
    content = database.read_bytes()
    database.write_bytes(b"no database" * 100)
    until(lambda: server.metric("segpipe_swap_failures_total", what="registry")[0] >= 2)
    assert len(server.lines("^registry: .*; version 2 goes on$")) == 1
    assert server.ask("POST", "/invocations", good, JSON)[0] == 200
    database.write_bytes(content)
    versions.set_registered_model_alias("tiny", "champion", "1")
    until(lambda: server.ask("GET", "/ping")[1]["x-model-version"] == "1")


def test_a_port_that_is_taken_is_told_in_a_line(server, step):
    code, told = step("serve", "--registry.model_name=tiny", f"--serving.port={server.port}")
    assert code == 1
    assert told.startswith(f"segpipe serve: 127.0.0.1:{server.port}: ")
    assert told.endswith("Address already in use; take another serving.host or serving.port\n")


def test_without_a_champion_there_is_nothing_to_serve(step):
    code, told = step("serve", "--registry.model_name=nobody", "--serving.port=0")
    assert (code, told.count("\n")) == (1, 1)
    assert told.startswith("segpipe serve: models:/nobody@champion: no such model or alias; give")


def test_what_is_in_flight_ends_before_the_server_does(server):
    large = text(picture(np.random.default_rng(0).integers(0, 256, (300, 300), dtype=np.uint8)))
    body, answers = records(*[{"image": large}] * 32), []
    client = threading.Thread(target=lambda: answers.append(server.ask("POST", "/invocations", body, JSON)))
    client.start()
    until(lambda: server.metric("segpipe_requests_in_flight")[0] == 2)
    os.kill(server.process.pid, signal.SIGTERM)
    client.join(30)
    assert [(status, len(json.loads(content)["predictions"])) for status, _, content in answers] == [(200, 32)]
    assert server.process.wait(15) == 0
    assert not server.lines("Traceback")
