"""The layer before MLflow's scoring application: a real model, asked as an ASGI server asks."""

import asyncio
import base64
import json
import warnings
import weakref
from typing import NamedTuple

import pytest
from conftest import TINY, disc, network
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import Response

from segpipe.config import settings
from segpipe.config.sections import ServingConfig
from segpipe.errors import InputError

JSON = {"content-type": "application/json"}
BASE = {"error_code", "message", "request_id"}
SECRET = "Erika Mustermann"  # stands in requests, must not stand in answers or logs


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes
    taken: int

    def json(self):
        assert self.content.endswith(b"\n")
        return json.loads(self.content)


async def asked(app, method, path, chunks=(b"",), headers=None):
    """What an ASGI application answers to a body in parts, and how many of them it took."""
    scope = {"type": "http", "method": method, "path": path, "query_string": b""}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    waiting, sent, taken = list(chunks), [], []

    async def receive():
        if not waiting:
            await asyncio.Future()
        taken.append(waiting.pop(0))
        return {"type": "http.request", "body": taken[-1], "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    named = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], named, b"".join(m["body"] for m in sent[1:]), len(taken))


def ask(app, method, path, chunks=(b"",), headers=None):
    return asyncio.run(asked(app, method, path, chunks, headers))


def post(app, body, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ask(app, "POST", "/invocations", [data], {**JSON, **headers})


@pytest.fixture(scope="module")
def uri(store, tmp_path_factory):
    """The champion of two versions of a tiny network with random weights."""
    import mlflow
    from mlflow import MlflowClient

    from segpipe.inference.predictor import Predictor
    from segpipe.inference.spec import ModelSpec
    from segpipe.recording import logged_models
    from segpipe.serving.served_model import ARTIFACT

    config = settings.load(None, {**dict(k.removeprefix("--").split("=") for k in TINY), "data.format": "folder"})
    shape = {"kind": "picture", "channels": ("grey",), "classes": ("foreground",)}
    folder, client = tmp_path_factory.mktemp("weights") / ARTIFACT, MlflowClient()
    Predictor(ModelSpec(model=config.model, preprocess=config.preprocess, **shape), network(config)).save(folder)
    with mlflow.start_run() as run, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow compares the columns of an example with a range
        model = logged_models.log(folder)
    client.create_registered_model("tiny")
    for _ in range(2):
        client.create_model_version("tiny", f"models:/{model}", run.info.run_id, model_id=model)
    client.set_registered_model_alias("tiny", "champion", "1")
    return "models:/tiny@champion"


@pytest.fixture(scope="module")
def served(uri):
    from segpipe.registry import champions
    from segpipe.server import loaded_model

    return loaded_model.load(champions.pinned(uri), ServingConfig())


def application_of(uri, say):
    from segpipe.registry import champions
    from segpipe.server import application, loaded_model

    return application.Application(loaded_model.load(champions.pinned(uri), ServingConfig()), ServingConfig(), say)


@pytest.fixture
def lines():
    return []


@pytest.fixture
def app(served, lines):
    from segpipe.server import application

    return application.Application(served, ServingConfig(max_body_mb=0.1), lines.append)


@pytest.fixture(scope="module")
def row():
    from segpipe.data import codecs

    return {"image": base64.b64encode(codecs.encode_picture(disc(40, 36, 0)[0])).decode()}


def test_an_answer_is_what_mlflows_application_answers(app, served, row, lines):
    body = {"dataframe_records": [row, row], "params": {"threshold": 0.4}}
    reply = post(app, body)
    assert reply.status == 200
    assert reply.content == asyncio.run(served.answers.ask(json.dumps(body).encode())).body
    assert len(json.loads(reply.content)["predictions"]) == 2
    assert reply.headers["x-model-version"] == "1"
    assert reply.headers["content-length"] == str(len(reply.content))
    assert " POST /invocations 200 " in lines[0]
    assert f" 2 rows {len(json.dumps(body))} bytes {reply.headers['x-request-id']}" in lines[0]


def form(app, *parts, headers=()):
    """Post fields and files: (name, content), with a file name where the content is bytes."""
    lines = []
    for name, content in parts:
        is_file = isinstance(content, bytes)
        more = '; filename="a file"\r\nContent-Type: application/octet-stream' if is_file else ""
        value = content if is_file else content.encode()
        lines += [f'--edge\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode(), value, b"\r\n"]
    body = b"".join([*lines, b"--edge--\r\n"])
    return ask(
        app, "POST", "/invocations", [body], {"content-type": "multipart/form-data; boundary=edge", **dict(headers)}
    )


def test_a_form_of_files_is_answered_as_the_same_rows_are(app, served, row, lines):
    picture = base64.b64decode(row["image"])
    assert b"\r" in picture or b"\n" in picture
    reply = form(app, ("file", picture), ("file", picture), ("threshold", "0.4"), ("output", "rle"))
    body = {"dataframe_records": [row, row], "params": {"threshold": 0.4, "output": "rle"}}
    assert reply.status == 200
    assert reply.content == asyncio.run(served.answers.ask(json.dumps(body).encode())).body
    assert " 2 rows " in lines[0]
    assert form(app, ("image", picture)).content == form(app, ("file", picture)).content


@pytest.mark.parametrize(
    ("parts", "status", "told"),
    [
        ([], 400, "the form has no file; send one with: curl -F file=@image.png"),
        ([("threshold", "0.4")], 400, "the form has no file"),
        ([("file", b"no image")], 400, "row 0: image: "),
        ([("flie", b"no image")], 400, "unknown column 'flie'"),
        ([("file", b"no image"), ("treshold", "0.4")], 400, "unknown parameter 'treshold' (nearest: threshold)"),
        ([("file", b"no image"), ("threshold", "much")], 400, "parameter threshold: not a double"),
    ],
)
def test_a_bad_form_is_told_in_a_line(app, parts, status, told):
    reply = form(app, *parts)
    assert (reply.status, told in reply.json()["message"]) == (status, True), reply.json()


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=other"])
def test_what_is_no_form_is_told(app, kind):
    reply = ask(app, "POST", "/invocations", [b"--edge\r\nno form"], {"content-type": kind})
    assert (reply.status, reply.json()["message"]) == (400, "the body is no multipart/form-data")


def test_a_form_from_a_web_page_is_not_read(app, row):
    parts = [("file", base64.b64decode(row["image"]))]
    reply = form(app, *parts, headers={"origin": "https://example.org"}.items())
    assert (reply.status, reply.taken) == (403, 0)


def test_a_form_gives_each_file_to_its_column_and_row():
    from segpipe.server import uploads

    parts = [("dwi", "a"), ("adc", "b"), ("dwi", "c")]
    text = "".join(
        f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n{content}\r\n'
        for name, content in parts
    )
    field = '--edge\r\nContent-Disposition: form-data; name="tta"\r\n\r\ntrue\r\n--edge--\r\n'
    made = uploads.as_json((text + field).encode(), {"content-type": "multipart/form-data; boundary=edge"})
    cells = {name: base64.b64encode(name.encode()).decode() for name in "abc"}
    rows = [{"dwi": cells["a"], "adc": cells["b"]}, {"dwi": cells["c"]}]
    assert json.loads(made) == {"dataframe_records": rows, "params": {"tta": True}}


@pytest.mark.parametrize("kind", ["dataframe_split", "inputs", "instances"])
def test_the_other_ways_to_ask_reach_the_model(app, row, kind):
    by_record = json.loads(post(app, {"dataframe_records": [row]}).content)
    image = row["image"]
    body = {"dataframe_split": {"columns": ["image"], "data": [[image]]}, "inputs": {"image": [image]}}
    reply = post(app, {kind: body.get(kind, [row])})
    assert reply.status == 200
    assert json.loads(reply.content) == by_record


ROW = {"image": SECRET}
FAULTS = {
    "nothing": (b"", "the body is not JSON (line 1, column 1)"),
    "cut off": (
        b'{"dataframe_records": [{"image": "' + SECRET.encode(),
        "the body is not JSON (line 1, column 34)",
    ),
    "not UTF-8": (b'{"inputs": ["\xff"]}', "the body is not JSON"),
    "too deep": (b"[" * 50_000, "the body is not JSON"),
    "a number of 5000 digits": (b'{"inputs": [1' + b"0" * 5000 + b"]}", "the body is not JSON"),
    "a list": ([ROW], "the body must be a JSON object"),
    "NaN": (b'{"instances": [[[NaN]]]}', "NaN is not JSON; every number must be finite"),
    "infinity": (b'{"instances": [-Infinity]}', "-Infinity is not JSON; every number must be finite"),
    "no input": ({"params": {}}, "expected exactly one of dataframe_records, dataframe_split, instances, inputs"),
    "two inputs": ({"dataframe_records": [ROW], "inputs": [1]}, "found dataframe_records and inputs"),
    "misspelt input": (
        {"dataframe_record": [ROW]},
        "unknown field 'dataframe_record' (nearest: dataframe_records)",
    ),
    "for a language model": ({"messages": [SECRET]}, "unknown field 'messages'"),
    "misspelt parameter": ({"inputs": [1], "params": {"treshold": 1}}, "'treshold' (nearest: threshold); known: "),
    "parameter as text": ({"inputs": [1], "params": {"threshold": "0.5"}}, "parameter threshold: not a double"),
    "parameters as list": ({"inputs": [1], "params": ["threshold"]}, "params must be an object"),
    "threshold above 1": ({"dataframe_records": [ROW], "params": {"threshold": 2}}, "threshold 2"),
    "no rows": ({"dataframe_records": []}, "dataframe_records must be a list of objects, one a row"),
    "rows as object": ({"dataframe_records": ROW}, "dataframe_records must be a list of objects, one a row"),
    "a row that is text": ({"dataframe_records": [ROW, SECRET]}, "row 1: not an object"),
    "no columns": ({"dataframe_split": {"data": [[1]]}}, "must be an object with 'columns' and 'data'"),
    "columns of numbers": ({"dataframe_split": {"columns": [1], "data": [[1]]}}, "must be a list of names"),
    "no data": ({"dataframe_split": {"columns": ["image"], "data": []}}, "'data' must be a list of rows"),
    "ragged": (
        {"dataframe_split": {"columns": ["image"], "data": [[1], [1, 2]]}},
        "row 1: not a list of 1 values",
    ),
    "short index": (
        {"dataframe_split": {"columns": ["image"], "data": [[1]], "index": []}},
        "'index' must have one entry a row",
    ),
    "one number": ({"instances": 3}, "instances must be a list, or an object of lists"),
    "unequal columns": ({"instances": [{"image": "a"}, {"images": "a"}, {"image": "a"}]}, "same"),
    "unknown column": ({"dataframe_records": [{"picture": SECRET}]}, ""),
    "not base64": ({"dataframe_records": [ROW]}, "not base64"),
}


@pytest.mark.parametrize(("body", "told"), FAULTS.values(), ids=FAULTS)
def test_a_bad_request_is_answered_in_one_shape_and_not_repeated(app, lines, body, told):
    reply = post(app, body)
    answer = reply.json()
    assert reply.status == 400
    assert told in answer["message"]
    assert "\n" not in answer["message"]
    assert BASE <= set(answer) <= {*BASE, "row", "reason"}
    assert answer["request_id"] == reply.headers["x-request-id"]
    for text in (reply.content.decode(), *lines):
        assert SECRET not in text
        assert "Traceback" not in text
        assert 'File "' not in text


def test_a_row_that_is_to_blame_is_named(app):
    answer = post(app, {"dataframe_records": [{}, 3]}).json()
    assert (answer["row"], answer["reason"]) == (1, "not an object")
    answer = post(app, {"dataframe_records": [{"image": "!"}]}).json()
    assert (answer["row"], answer["message"]) == (0, f"row 0: {answer['reason']}")


@pytest.mark.parametrize(
    "kind",
    ["", "text/csv", "application/vnd.apache.parquet", "application/json; charset=latin-1", "text/plain"],
)
def test_everything_but_json_is_refused_before_it_is_read(app, kind):
    reply = ask(app, "POST", "/invocations", [b"{}"], {"content-type": kind} if kind else {})
    assert (reply.status, reply.json()["error_code"], reply.taken) == (415, "UNSUPPORTED_MEDIA_TYPE", 0)


def test_a_compressed_body_is_refused(app):
    reply = post(app, b"\x1f\x8b", **{"content-encoding": "gzip"})
    assert (reply.status, reply.json()["message"]) == (415, "Content-Encoding: the body must not be compressed")


def test_json_may_say_that_it_is_utf_8(app, row):
    body = json.dumps({"dataframe_records": [row]}).encode()
    reply = ask(app, "POST", "/invocations", [body], {"content-type": 'application/JSON;charset="UTF-8"'})
    assert reply.status == 200


def test_a_body_that_is_announced_too_large_is_not_read(app):
    reply = post(app, b"{}", **{"content-length": "100001"})
    assert (reply.status, reply.taken) == (413, 0)
    assert reply.json()["message"] == "the body is larger than serving.max_body_mb, 0.1 MB"


def test_a_body_in_parts_is_refused_as_soon_as_it_is_too_large(app):
    reply = ask(app, "POST", "/invocations", [b" " * 60_000] * 9, JSON)
    assert (reply.status, reply.taken) == (413, 2)
    assert post(app, b"{}").status == 400


def test_as_many_large_bodies_as_fit_are_held_at_once(app):
    async def all_at_once():
        parts = [b" " * 90_000, b"{"]
        return await asyncio.gather(*(asked(app, "POST", "/invocations", parts, JSON) for _ in range(6)))

    def slow(reply):
        return reply.status == 400

    replies = asyncio.run(held(app, all_at_once))
    refused = [reply for reply in replies if not slow(reply)]
    assert [reply.status for reply in refused] == [503, 503]
    assert refused[0].headers["retry-after"] == "1"
    assert post(app, b" " * 90_000).status == 400


async def held(app, work):
    """Work while nothing is predicted, so that bodies have to wait."""
    for _ in range(2):
        await app._turns.acquire()
    task = asyncio.create_task(work())
    await asyncio.sleep(0.1)
    for _ in range(2):
        app._turns.release()
    return await task


def test_a_body_that_stops_coming_is_given_up(app, monkeypatch):
    from segpipe.server import application

    async def stalled():
        async def receive():
            await asyncio.Future()

        sent = []

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", b"5")]
        scope = {"type": "http", "method": "POST", "path": "/invocations", "query_string": b"", "headers": headers}
        await app(scope, receive, send)
        return sent

    monkeypatch.setattr(application, "PATIENCE", 0.05)
    assert asyncio.run(stalled())[0]["status"] == 408


@pytest.mark.parametrize("given", ["r-1", "~" * 128])
def test_a_request_id_comes_back(app, lines, given):
    reply = post(app, b"{", **{"x-request-id": given})
    assert reply.headers["x-request-id"] == reply.json()["request_id"] == given
    assert lines[0].endswith(given)


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "line\nbreak", "\xfc"])
def test_a_request_id_that_could_do_harm_is_replaced(app, given):
    reply = ask(app, "GET", "/ping", headers={"x-request-id": given})
    assert reply.headers["x-request-id"] != given
    assert len(reply.headers["x-request-id"]) == 32


def test_unknown_paths_and_methods_are_told_what_there_is(app, lines):
    reply = ask(app, "GET", "/docs\n" + "x" * 999)
    assert (reply.status, reply.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND")
    assert "there are /health, /invocations, /metrics, /ping, /version" in reply.json()["message"]
    assert "\n" not in lines[0]
    assert len(lines[0]) < 300
    reply = ask(app, "GET", "/invocations")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert ask(app, "DELETE", "/version").headers["allow"] == "GET"


@pytest.mark.parametrize("path", ["/ping", "/health"])
def test_a_model_that_answers_is_healthy(app, path):
    reply = ask(app, "GET", path)
    assert (reply.status, reply.json()) == (200, {"status": "ok"})


def test_the_version_is_told_by_number_run_and_digest(app, uri):
    from mlflow import MlflowClient

    import segpipe
    from segpipe.recording import logged_models

    told, known = ask(app, "GET", "/version").json(), MlflowClient().get_model_version("tiny", "1")
    assert told["weights_sha256"] == logged_models.weights(told["model_id"])[0]
    assert (told["name"], told["version"], told["run_id"]) == ("tiny", "1", known.run_id)
    assert (told["threshold"], told["columns"], told["classes"]) == (0.5, ["image"], ["foreground"])
    assert told["segpipe"] == segpipe.__version__


def measured(app):
    """Every sample of /metrics, by name and labels."""
    reply = ask(app, "GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(reply.content.decode())
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def test_metrics_count_requests_rows_and_bytes(app, row):
    body = json.dumps({"dataframe_records": [row, row]}).encode()
    for sent in (body, body, b"{"):
        post(app, sent)
    ask(app, "GET", "/nowhere")
    found = measured(app)
    assert found["segpipe_requests_total", "/invocations", "200"] == 2
    assert found["segpipe_requests_total", "/invocations", "400"] == 1
    assert found["segpipe_requests_total", "404", "other"] == 1
    assert found[("segpipe_rows_total",)] == 4
    assert found[("segpipe_request_bytes_total",)] == 2 * len(body) + 1
    assert found["segpipe_request_seconds_count", "/invocations"] == 3
    assert found[("segpipe_requests_in_flight",)] == 1
    assert found[("process_resident_memory_bytes",)] > 1e8
    assert [value for name, value in found.items() if name[0] == "segpipe_model_info"] == [1]


def test_mlflows_timeout_is_told_in_the_same_shape(uri, row, lines, monkeypatch):
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "0")
    reply = post(application_of(uri, lines.append), {"dataframe_records": [row]})
    assert (reply.status, reply.json()["error_code"]) == (504, "DEADLINE_EXCEEDED")


def test_a_stack_trace_goes_to_the_log_as_a_place():
    import traceback

    from mlflow.exceptions import MlflowException

    from segpipe.server import mlflow_app

    try:
        json.loads(SECRET)
    except ValueError:
        trace = traceback.format_exc()
    told = mlflow_app.refusal(
        400, MlflowException(SECRET, stack_trace=f"{trace}ValueError: {SECRET}").serialize_as_json()
    )
    assert (told.status, str(told)) == (500, "the model failed on this request")
    assert told.notes[0].startswith("failed in raw_decode, ")
    assert SECRET not in told.notes[0]


def test_what_mlflow_repeats_of_a_request_is_cut_away():
    from mlflow.exceptions import MlflowException

    from segpipe.server import mlflow_app

    message = f"Failed to predict data '{SECRET}'. \nError: Failed to enforce schema of '{SECRET}'. Error: no column"
    assert (
        str(mlflow_app.refusal(400, MlflowException.invalid_parameter_value(message).serialize_as_json()))
        == "no column"
    )
    assert str(mlflow_app.refusal(502, b"<html>")) == "MLflow refused the request"


def test_a_model_that_breaks_is_a_fault_of_the_server(uri, row, lines):
    app = application_of(uri, lines.append)
    app.served.predictor.model = None
    reply = post(app, {"dataframe_records": [row]})
    assert (reply.status, reply.json()["error_code"]) == (500, "INTERNAL_ERROR")
    assert "NoneType" not in reply.content.decode()


def test_more_paths_share_limits_errors_and_the_version(served, lines):
    from segpipe.server.application import Application

    def page(request, _):
        return Response(f"version {request.served.version}", headers={"x-own": "1"}, media_type="text/html")

    def segment(request, body):
        if request.headers.get("content-type") != "image/png":
            raise InputError("not a picture")
        return Response(body[::-1])

    def broken(*_):
        raise KeyError(SECRET)

    more = {("GET", "/"): page, ("POST", "/segment"): segment, ("GET", "/broken"): broken}
    app = Application(served, ServingConfig(max_body_mb=0.001), lines.append, more)
    reply = ask(app, "GET", "/")
    assert (reply.content, reply.headers["x-own"]) == (b"version 1", "1")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert ask(app, "POST", "/segment", [b"ab", b"c"], {"content-type": "image/png"}).content == b"cba"
    assert ask(app, "POST", "/segment", [b"abc"]).json()["message"] == "not a picture"
    assert ask(app, "POST", "/segment", [b"abc" * 999]).status == 413
    assert ask(app, "GET", "/segment").headers["allow"] == "POST"
    assert ask(app, "GET", "/broken").status == 500
    assert "(KeyError in broken, " in lines[-1]
    assert SECRET not in lines[-1]


def test_a_request_that_the_end_of_the_server_cuts_off_is_told_so(app, row):
    async def cut_off():
        for _ in range(2):
            await app._turns.acquire()
        body = json.dumps({"dataframe_records": [row]}).encode()
        task = asyncio.create_task(asked(app, "POST", "/invocations", [body], JSON))
        await asyncio.sleep(0.05)
        task.cancel()
        return await task

    reply = asyncio.run(cut_off())
    assert (reply.status, reply.json()["message"]) == (503, "the server is stopping; ask again")


@pytest.fixture
def watched(uri, lines):
    """An application, and what looks for its champion."""
    from mlflow import MlflowClient

    from segpipe.server.following import Watch

    app = application_of(uri, lines.append)
    yield app, Watch(uri, app)
    MlflowClient().set_registered_model_alias("tiny", "champion", "1")


def test_a_new_champion_takes_over_and_the_old_one_is_freed(watched, row, lines):
    from mlflow import MlflowClient

    app, watch = watched

    async def across():
        for _ in range(2):
            await app._turns.acquire()
        body = json.dumps({"dataframe_records": [row]}).encode()
        before = asyncio.create_task(asked(app, "POST", "/invocations", [body], JSON))
        await asyncio.sleep(0.05)
        assert await asyncio.to_thread(watch.look)
        for _ in range(2):
            app._turns.release()
        return await before, await asked(app, "POST", "/invocations", [body], JSON)

    old = weakref.ref(app.served.predictor.model)
    assert watch.look()
    assert lines == []
    MlflowClient().set_registered_model_alias("tiny", "champion", "2")
    before, after = asyncio.run(across())
    assert [(r.status, r.headers["x-model-version"]) for r in (before, after)] == [(200, "1"), (200, "2")]
    assert "models:/tiny@champion is version 2 now, in the place of version 1" in lines
    assert old() is None
    found = measured(app)
    assert found[("segpipe_swaps_total",)] == 1
    assert [name for name in found if name[0] == "segpipe_model_info" and "2" in name]


def test_a_champion_that_cannot_be_served_is_told_once_and_kept_out(watched, lines, tmp_path):
    from mlflow import MlflowClient

    app, watch = watched
    client = MlflowClient()
    (tmp_path / "other").mkdir()
    broken = client.create_model_version("tiny", str(tmp_path / "other"))
    client.set_registered_model_alias("tiny", "champion", broken.version)
    assert [watch.look(), watch.look()] == [False, False]
    assert len(lines) == 1
    assert "version 1 goes on" in lines[0]
    assert app.served.version == "1"
    assert measured(app)["segpipe_swap_failures_total", "version"] == 2


def test_a_champion_that_nobody_is_any_more_goes_on(watched, lines):
    from mlflow import MlflowClient

    app, watch = watched
    MlflowClient().delete_registered_model_alias("tiny", "champion")
    assert [watch.look(), watch.look()] == [False, False]
    assert lines == [
        "registry: models:/tiny@champion: no such model or alias; give --registry.model_name or --predict.model, "
        "or register a model first; version 1 goes on"
    ]
    assert measured(app)["segpipe_swap_failures_total", "registry"] == 2


def test_a_version_that_was_named_is_not_followed(served, lines):
    import threading

    from segpipe.server.application import Application
    from segpipe.server.following import following

    def watching():
        return [thread.name for thread in threading.enumerate()].count("champion")

    app = Application(served, ServingConfig(), lines.append)
    with following("models:/tiny/1", app):
        assert watching() == 0
    with following("models:/tiny@champion", app):
        assert watching() == 1


def test_what_segpipe_did_not_log_is_not_served(store, tmp_path):
    with pytest.raises(InputError, match="no such model or alias; give"):
        application_of("models:/nobody@champion", print)
    with pytest.raises(InputError, match="not a model that segpipe logged"):
        application_of(str(tmp_path), print)


def test_an_answer_is_sent_at_once_and_not_held_back_for_a_larger_packet():
    import socket

    from segpipe.server import http_server

    with http_server.bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # what asyncio asks before it sets TCP_NODELAY


def test_several_servers_take_several_ports_unless_one_is_asked_for():
    from segpipe.errors import InputError
    from segpipe.server import http_server

    with http_server.bind("127.0.0.1", "auto") as one:
        one.listen()
        with http_server.bind("127.0.0.1", "auto") as two:
            ports = [listener.getsockname()[1] for listener in (one, two)]
            assert http_server.PORTS[0] <= ports[0] < ports[1] <= http_server.PORTS[-1]
        with pytest.raises(InputError, match=rf"^127.0.0.1:{ports[0]}: .*in use; take another serving.host or"):
            http_server.bind("127.0.0.1", ports[0])


def test_networks_run_in_the_thread_that_waits_for_them_and_faults_reach_whoever_asked():
    import threading

    from segpipe.server.main_thread import MainThread

    networks, seen = MainThread(), []

    def other():
        seen.append(networks(lambda: threading.current_thread() is threading.main_thread()))
        with pytest.raises(ZeroDivisionError):
            networks(lambda: 1 / 0)
        seen.append(threading.current_thread() is threading.main_thread())
        raise InputError("ended")

    with pytest.raises(InputError, match="ended"):
        networks.during(other)
    assert seen == [True, False]
