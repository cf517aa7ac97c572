"""Latency, throughput, start-up and memory of the served model, beside the bare forward pass of its network.

    python -m benchmarks.serving [--threads 1] [--channels 3]

Real servers on the loopback device, asked by real clients, each with a connection that it keeps. Baseline: the same
network on the same pictures, prepared, in this process with as many threads. Beside: MLflow's own way (`mlflow.pytorch`
and JSON tensors), and a model that answers a constant, which is what MLflow's server takes for itself. What the tables
show and how they are taken: docs/performance.md.
"""

import argparse
import base64
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import served
from benchmarks.serving_clients import Contender, forward, one_by_one, over_http, records, tensors, together
from benchmarks.serving_servers import Server, by_mlflow, by_us, held, log_models, members, serve
from benchmarks.train_contenders import interleaved, least, ratio, table
from segpipe.data import codecs
from segpipe.inference.predictor import Predictor

SIDES, STOCK_SIDE, CLIENTS = (256, 512), 512, (1, 4, 16)
BATCH, DIFFERENT = 16, 16  # pictures in a request; pictures that differ
RAW, PLAIN, OURS, CONSTANT, STOCK = "forward pass", "mlflow models serve", "steps.serve", "constant model", "stock"
IMPORTS = "import mlflow.pyfunc, torch, segmentation_models_pytorch"
Commands = dict[str, Callable[[int], list[str]]]
Goals = list[list[str]]
Middles = NDArray[np.float64]


class Work(NamedTuple):
    """The network, the pictures to ask about by their side, and the servers that are up."""

    predictor: Predictor
    files: dict[int, list[bytes]]
    servers: dict[str, Server]

    def raw(self, side: int, batch: int = 1) -> Contender:
        seen = [served.as_seen(self.predictor, data) for data in self.files[side]]
        joined = torch.cat(seen).split(batch)
        return forward(self.predictor.model, [b.contiguous(memory_format=torch.channels_last) for b in joined])

    def asked(self, name: str, side: int, batch: int = 1) -> Contender:
        files = self.files[side]
        parts = [files[first : first + batch] for first in range(0, len(files), batch)]
        return over_http(self.servers[name].port, [records(part) for part in parts])

    def contenders(self, side: int, batch: int = 1) -> dict[str, Contender]:
        return {RAW: self.raw(side, batch), **{name: self.asked(name, side, batch) for name in (CONSTANT, PLAIN, OURS)}}

    def stock(self, side: int) -> Contender:
        images = [served.normalised(self.predictor, data) for data in self.files[side][:4]]
        return over_http(self.servers[STOCK].port, [tensors([image]) for image in images])


def at_most(value: float, goal: float) -> str:
    return f"<= {goal:g}: {'met' if value <= goal else 'not met'}"


def check(work: Work) -> None:
    """End with a line where a server answers with another mask than the network has."""
    for side, files in work.files.items():
        image = codecs.decode(files[0], "picture")
        segmentation = work.predictor.segment(image.array, work.predictor.spec.threshold)
        wanted = base64.b64encode(codecs.encode_mask(segmentation.mask, image, 1)).decode("ascii")
        for name in (PLAIN, OURS):
            answer = work.asked(name, side)()(0)
            if not isinstance(answer, bytes) or json.loads(answer)["predictions"][0]["mask"] != wanted:
                raise SystemExit(f"{name}: another mask than the network's for a picture of {side} x {side}")


def startup(commands: Commands, folder: Path, rounds: int) -> None:
    """From the start of a process to its first answer to /ping."""

    def imports(_: int) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
        return time.perf_counter() - began

    def started(name: str) -> Callable[[int], float]:
        def start(_: int) -> float:
            with serve(commands[name], folder) as server:
                return server.seconds

        return start

    names = (CONSTANT, PLAIN, OURS)
    seconds = interleaved({"the imports": imports, **{name: started(name) for name in names}}, rounds)
    rows = []
    for name, own in seconds.items():
        times, spread = ratio(own, seconds["the imports"])
        rows.append([name, f"{statistics.median(own):.1f}", f"{times:.2f}", spread])
    table("start of the process to its first answer|s|beside the imports|range over rounds", rows)


def latencies(work: Work, given: argparse.Namespace, side: int) -> Goals:
    """One picture a request, one request after the other."""
    actions = {name: one_by_one(asked, given.requests) for name, asked in work.contenders(side).items()}
    if STOCK in work.servers and side == STOCK_SIDE:
        actions[STOCK] = one_by_one(work.stock(side), given.stock_requests)
    taken, rows = interleaved(actions, given.rounds), []
    middles = {name: np.array([statistics.median(own) for own in rounds]) for name, rounds in taken.items()}
    for name, rounds in taken.items():
        percentiles = [f"{ms:.1f}" for ms in np.percentile(np.concatenate(rounds), (50, 95, 99))]
        more = middles[name] - middles[RAW]
        beyond = ["", ""] if name == RAW else [f"{np.median(more):.1f}", f"{more.min():.1f}..{more.max():.1f}"]
        rows.append([name, sum(map(len, rounds)), *percentiles, *beyond])
    head = f"one {side} x {side} PNG|requests|p50 ms|p95 ms|p99 ms"
    table(f"{head}|p50 less that of the {RAW}, ms|range over rounds", rows)
    return [goal for name in (PLAIN, OURS) for goal in latency_goals(name, side, middles)]


def latency_goals(name: str, side: int, middles: dict[str, Middles]) -> Goals:
    """`middles` are the contenders' median milliseconds in each round."""
    more, goals = np.median(middles[name] - middles[RAW]), []
    if side == min(SIDES):
        goals += [[f"{name}, {side} x {side}: p50 less that of the {RAW}, ms", f"{more:.1f}", at_most(more, 15)]]
    if STOCK in middles:
        whole = np.median(middles[STOCK] / middles[name])
        beyond = np.median(middles[STOCK] - middles[RAW]) / more
        goals += [[f"{STOCK} / {name}, {side} x {side}: p50", f"{whole:.1f}", least(whole, 20)]]
        goals += [[f"{STOCK} / {name}, {side} x {side}: p50 less that of the {RAW}", f"{beyond:.1f}", ""]]
    return goals


def throughput(work: Work, given: argparse.Namespace, side: int) -> Goals:
    """One picture a request, several clients at once; beside them the network, called by as many threads."""
    rows, goals = [], []
    for clients in CLIENTS:
        requests = max(given.requests, 4 * clients)
        actions = {name: together(asked, clients, requests) for name, asked in work.contenders(side).items()}
        rates = interleaved(actions, given.rounds)
        row = [str(clients), *(f"{statistics.median(rates[name]):.1f}" for name in (CONSTANT, RAW))]
        for name in (PLAIN, OURS):
            share, spread = ratio(rates[name], rates[RAW])
            row += [f"{statistics.median(rates[name]):.1f}", f"{share:.3f}", spread]
            goals.append([f"{name}, {clients} at once, beside the {RAW}", f"{share:.3f}", least(share, 0.9)])
        rows.append(row)
    ours = "|".join(f"{name}|beside {RAW}|range" for name in (PLAIN, OURS))
    table(f"clients, {side} x {side}, requests/s|{CONSTANT}|{RAW}, as many threads|{ours}", rows)
    return goals


def batches(work: Work, given: argparse.Namespace) -> Goals:
    """Sixteen pictures a request, one request after the other."""
    rows, goals, requests = [], [], max(1, given.requests // BATCH)
    for side in SIDES:
        actions = {name: together(asked, 1, requests) for name, asked in work.contenders(side, BATCH).items()}
        rates = interleaved(actions, given.rounds)
        for name, own in rates.items():
            share, spread = ratio(own, rates[RAW])
            figures = ["", ""] if name in (RAW, CONSTANT) else [f"{share:.3f}", spread]
            rows.append([f"{name}, {side} x {side}", f"{BATCH * statistics.median(own):.1f}", *figures])
            if name in (PLAIN, OURS):
                what = f"{name}, {BATCH} of {side} x {side} in a request, beside the {RAW}"
                goals.append([what, f"{share:.3f}", least(share, 0.9)])
    table(f"{BATCH} in one request|images/s|beside {RAW}, {BATCH} at a time|range over rounds", rows)
    return goals


def memory(servers: dict[str, Server]) -> None:
    rows = []
    for name, server in servers.items():
        own, whole = (held(server.worker, kind) for kind in ("RssAnon", "VmRSS"))
        total = sum(held(member, "RssAnon") for member in members(server.leader))
        rows.append([name, *(f"{mib:.0f}" for mib in (server.memory, own, whole, total))])
    head = "memory of a worker, MiB|anonymous at first|anonymous after the load|resident after the load"
    table(f"{head}|anonymous, all processes", rows)


def options() -> argparse.Namespace:
    numbers = {"rounds": 5, "requests": 40, "stock_requests": 4, "starts": 3}
    return served.options("serving", numbers).parse_args()


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)  # torch and MLflow tell of their own ways
    given = options()
    served.threads(given)
    with tempfile.TemporaryDirectory(prefix="segpipe-bench-") as name, ExitStack() as up:
        folder, predictor = Path(name), served.predictor(served.configured(given), given.channels)
        print(served.machine())
        print(
            f"{given.arch}, {given.encoder}, depth {given.depth}, {given.size} x {given.size}, {given.channels} "
            f"channels; {given.rounds} rounds of {given.requests} requests; servers and clients share the cores; "
            "a request's body is made beforehand and its answer not read\n"
        )
        files = {
            side: [served.png(served.picture(side, given.channels, number)) for number in range(DIFFERENT)]
            for side in SIDES
        }
        uris = log_models(predictor, folder, served.normalised(predictor, files[STOCK_SIDE][0]))
        commands: Commands = {CONSTANT: by_mlflow(uris["constant"]), PLAIN: by_mlflow(uris["ours"]), OURS: by_us}
        if given.starts:
            startup(commands, folder, given.starts)
        if given.stock_requests:
            commands[STOCK] = by_mlflow(uris["stock"])
        servers = {name: up.enter_context(serve(command, folder)) for name, command in commands.items()}
        work = Work(predictor, files, servers)
        check(work)
        goals = [goal for side in SIDES for goal in latencies(work, given, side)]
        goals += [*throughput(work, given, min(SIDES)), *batches(work, given)]
        memory(servers)
        table("goal|measured|", goals)


if __name__ == "__main__":
    main()
