"""Who asks the servers of benchmarks.serving, and the network itself, and how long the answers take."""

import base64
import http.client
import itertools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

Ask = Callable[[int], object]  # the number of a request to its answer
Contender = Callable[[], Ask]  # called by each client, for one that asks for it alone


def records(files: Sequence[bytes]) -> bytes:
    """The body of a request with a row for each file."""
    rows = [{"image": base64.b64encode(data).decode("ascii")} for data in files]
    return json.dumps({"dataframe_records": rows}).encode()


def tensors(images: Sequence[Tensor]) -> bytes:
    """The body of a request with N,C,H,W numbers, as a network that MLflow serves by itself takes it."""
    return json.dumps({"inputs": torch.stack(list(images)).tolist()}).encode()


def over_http(port: int, bodies: Sequence[bytes]) -> Contender:
    """A client with a connection that it keeps; neither encoding the request nor reading the answer is on the clock."""

    def connected() -> Ask:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)

        def ask(number: int) -> bytes:
            body = bodies[number % len(bodies)]
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            if response.status != http.client.OK:
                raise SystemExit(f"port {port} answered {response.status}: {answer[:500].decode(errors='replace')}")
            return answer

        return ask

    return connected


def forward(network: nn.Module, batches: Sequence[Tensor]) -> Contender:
    """The network on tensors N,C,h,w that are prepared: nothing to leave out."""

    def ask(number: int) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = network(batches[number % len(batches)])
            return logits

    return lambda: ask


def one_by_one(contender: Contender, requests: int) -> Callable[[int], list[float]]:
    """In each round milliseconds of each request, one after the other, after one that does not count."""

    def milliseconds(_: int) -> list[float]:
        ask, taken = warm(contender), []
        for number in range(requests):
            began = time.perf_counter()
            ask(number)
            taken.append(1000 * (time.perf_counter() - began))
        return taken

    return milliseconds


def together(contender: Contender, clients: int, requests: int) -> Callable[[int], float]:
    """In each round requests/s of all clients together, each with one under way at a time, after one of each that does
    not count.
    """

    def rate(_: int) -> float:
        numbers = itertools.count()

        def work(ask: Ask) -> None:
            while (number := next(numbers)) < requests:
                ask(number)

        with ThreadPoolExecutor(clients) as pool:
            asks = list(pool.map(lambda _: warm(contender), range(clients)))
            began = time.perf_counter()
            list(pool.map(work, asks))
            return requests / (time.perf_counter() - began)

    return rate


def warm(contender: Contender) -> Ask:
    ask = contender()
    ask(0)
    return ask
