"""One, two and four trainings at once, with OpenMP's own way of waiting and with that of `segpipe.runtime.cores`.

    python -m benchmarks.sharing [--rounds 3] [--steps 3]

Each training is a process with a thread for every core; those of a round begin an epoch together. Baseline: the same
trainings with OpenMP's variables unset, in the same rounds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.served import machine
from benchmarks.train_contenders import interleaved, ours, ratio, simulate, started, table
from segpipe.config import settings
from segpipe.files.project import PROJECT
from segpipe.runtime import cores

AT_ONCE = (1, 2, 4)
UNSET, PASSIVE, SHARED = "unset", "OMP_WAIT_POLICY=PASSIVE", "as a step has it"
WAYS = {UNSET: {}, PASSIVE: {"OMP_WAIT_POLICY": "PASSIVE"}, SHARED: cores.SHARED}
KNOBS = {"model.encoder_depth": "4", "train.device": "cpu", "augment.enabled": "false"}


class Training:
    """A process that trains an epoch when it is told to."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.heard()

    def tell(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def heard(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a training has ended; its error is above")
        return line


@contextmanager
def training(folder: Path, way: dict[str, str]) -> Iterator[Training]:
    environment = {name: value for name, value in os.environ.items() if name not in cores.SPINS} | way
    program = [sys.executable, "-m", "benchmarks.sharing", "--train", str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, cwd=PROJECT, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        yield Training(process)
        process.terminate()


def train(folder: Path) -> None:
    """In a process of its own: the seconds of an epoch for each line on stdin."""
    epoch = ours(started(folder, KNOBS))
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin):
        print(epoch(number), flush=True)


def together(trainings: list[Training]) -> Callable[[int], float]:
    """In each round the mean seconds of an epoch in each of them, begun together."""

    def seconds(_: int) -> float:
        for one in trainings:
            one.tell()
        return statistics.mean(float(one.heard()) for one in trainings)

    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="batches an epoch  [default: 3]")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(given.train)
        return
    print(machine(), "\n")
    with tempfile.TemporaryDirectory(prefix="segpipe-bench-") as name, ExitStack() as up:
        folder, config = Path(name), settings.load(None, KNOBS)
        simulate(config, folder, {"train": given.steps * config.train.batch_size, "val": config.train.batch_size})
        started_trainings = {
            way: [up.enter_context(training(folder, variables)) for _ in range(max(AT_ONCE))]
            for way, variables in WAYS.items()
        }
        rows = []
        for count in AT_ONCE:
            actions = {way: together(several[:count]) for way, several in started_trainings.items()}
            taken = interleaved(actions, given.rounds)
            for way, own in taken.items():
                share, spread = ratio(own, taken[UNSET])
                rows.append([f"{count}, {way}", f"{statistics.median(own):.2f}", f"{share:.3f}", spread])
        table(f"trainings at once|s an epoch|beside {UNSET}|range over rounds", rows)


if __name__ == "__main__":
    main()
