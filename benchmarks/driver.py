"""How soon the driver has ended where nothing has changed, how soon a step is at work, and what imports cost.

    python -m benchmarks.driver [--rounds 9] [--chains 3]

Baselines, in the same rounds: `python -c "import mlflow"` for the driver, which may take twice that and a second; for a
step's first useful line (tag segpipe.work_began) the imports that a step can't do without, those of benchmarks.chain. A
tiny chain on simulated patients, read as files, in stores of its own; what Python compiles is kept.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from mlflow import MlflowClient

from benchmarks import chain
from benchmarks.train_contenders import interleaved, ratio, table
from segpipe.data import phantom
from segpipe.files.project import PROJECT
from segpipe.orchestration.keys import STEPS

PATIENTS, IMPORT_ROUNDS, DEAREST = 6, 3, 10
TINY = (
    *("--data.format=nifti", "--split.test=0.34", "--preprocess.size=32", "--registry.model_name=tiny"),
    *("--model.encoder=tu-test_resnet", "--model.encoder_depth=3", "--train.epochs=2", "--train.batch_size=4"),
    *("--evaluate.bootstrap_samples=100", "--gate.min_patients=1", "--gate.beat_trivial=false"),
)
MLFLOW, UNCHANGED, PLAN = "import mlflow", "pipeline.py, nothing changed", "pipeline.py --plan"
OWN, IN_PROCESS = "processes of their own", "--in-process"
Environment = dict[str, str]


def environment(home: Path) -> Environment:
    """A store and a cache in `home`; what Python compiles is kept, as on a user's machine."""
    home.mkdir(parents=True)
    known = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**known, "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}", "SEGPIPE_CACHE": str(home / "cache")}


def ran(given: Environment, *arguments: str) -> tuple[float, str]:
    """Seconds that a Python process takes from its start to its end, and what it wrote."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=PROJECT, env=given, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return seconds, done.stdout + done.stderr


def reused(given: Environment, *arguments: str) -> float:
    """Seconds that the driver takes to find that every step can be reused."""
    seconds, shown = ran(given, "pipeline.py", *arguments)
    if shown.count(": reuse") != len(STEPS):
        raise SystemExit(f"something has changed:\n{shown}")
    return seconds


def nothing_changed(given: Environment, knobs: Sequence[str], rounds: int) -> None:
    """The driver beside `import mlflow`, and beside what it may take."""
    results = interleaved(
        {
            MLFLOW: lambda _: ran(given, "-c", MLFLOW)[0],
            UNCHANGED: lambda _: reused(given, *knobs),
            PLAN: lambda _: reused(given, "--plan", *knobs),
        },
        rounds,
    )
    base, rows = results[MLFLOW], []
    allowed = [2 * seconds + 1 for seconds in base]
    for name, values in results.items():
        times, spread = ratio(values, base)
        share = ratio(values, allowed)[0]
        goal = "" if name == MLFLOW else f"{share:.2f} of it: {'met' if share <= 1 else 'not met'}"
        rows.append([name, f"{statistics.median(values):.2f}", f"{times:.2f}", spread, goal])
    table(f"median of {rounds}|s|x {MLFLOW}|range over rounds|goal: 2 x {MLFLOW} + 1 s", rows)


def first_lines(given: Environment) -> dict[str, float]:
    """Seconds between the driver's start of each step and the step's first useful line."""
    client = MlflowClient(given["MLFLOW_TRACKING_URI"])
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    begun = {run.data.tags["segpipe.step"]: run for run in runs if "segpipe.work_began" in run.data.tags}
    if begun.keys() != STEPS.keys():
        raise SystemExit(f"{given['MLFLOW_TRACKING_URI']}: expected one run of each step, found {sorted(begun)}")
    return {
        step: (int(begun[step].data.tags["segpipe.work_began"]) - begun[step].info.start_time) / 1000 for step in STEPS
    }


def fresh(folder: Path, knobs: Sequence[str], *more: str) -> Callable[[int], dict[str, float]]:
    """A chain in a new store each round: seconds until each step's first useful line, and in all."""

    def run(number: int) -> dict[str, float]:
        given = environment(folder / " ".join(["chain", str(number), *more]))
        seconds = ran(given, "pipeline.py", *knobs, *more)[0]
        return {**first_lines(given), "the whole chain": seconds}

    return run


def start_up(folder: Path, knobs: Sequence[str], chains: int) -> None:
    """Steps in processes of their own beside steps in the driver's, and beside the imports."""
    given = environment(folder / "imports")
    results = interleaved(
        {
            chain.BASELINE: lambda _: {chain.BASELINE: ran(given, "-c", chain.BASELINE)[0]},
            OWN: fresh(folder, knobs),
            IN_PROCESS: fresh(folder, knobs, IN_PROCESS),
        },
        chains,
        first=1,
    )
    base = [result[chain.BASELINE] for result in results[chain.BASELINE]]
    print(f"baseline: {chain.BASELINE}: {statistics.median(base):.2f} s (median of {chains})\n")
    rows = []
    for name in results[OWN][0]:
        own, inside = ([result[name] for result in results[kind]] for kind in (OWN, IN_PROCESS))
        shown = [
            f"{number:.2f}"
            for values in (own, inside)
            for number in (statistics.median(values), ratio(values, base)[0])
        ]
        rows.append([name, *shown])
    table(f"s to the first useful line|{OWN}|x baseline|{IN_PROCESS}|x baseline", rows)


def imported(shown: str) -> Counter[str]:
    """Microseconds by top-level package, from what `python -X importtime` wrote."""
    total: Counter[str] = Counter()
    for line in shown.splitlines():
        if found := re.match(r"import time: +(\d+) \| +\d+ \| +(\w+)", line):
            total[found[2]] += int(found[1])
    return total


def imports(given: Environment, knobs: Sequence[str]) -> None:
    """The dearest packages of the driver, where nothing has changed, and of a training, beside `import mlflow`."""
    programs = {
        MLFLOW: ("-c", MLFLOW),
        UNCHANGED: ("pipeline.py", *knobs),
        "steps.train": ("-m", "steps.train", *knobs),
    }

    def timed(program: Sequence[str]) -> Callable[[int], tuple[float, Counter[str]]]:
        def run(_: int) -> tuple[float, Counter[str]]:
            seconds, shown = ran(given, "-X", "importtime", *program)
            return seconds, imported(shown)

        return run

    results = interleaved({name: timed(program) for name, program in programs.items()}, IMPORT_ROUNDS)
    costs = {name: [found for _, found in values] for name, values in results.items()}
    for name in list(programs)[1:]:
        medians = {package: _median(costs[name], package) for found in costs[name] for package in found}
        dearest = sorted(medians, key=lambda package: -medians[package])[:DEAREST]
        wall, whole = (
            statistics.median(v) for v in zip(*((s, c.total() / 1e6) for s, c in results[name]), strict=True)
        )
        rows = [[package, f"{medians[package]:.3f}", f"{_median(costs[MLFLOW], package):.3f}"] for package in dearest]
        base = statistics.median(found.total() / 1e6 for found in costs[MLFLOW])
        table(
            f"{name}: imports, s of {wall:.2f}|s|in {MLFLOW}", [*rows, ["all imports", f"{whole:.3f}", f"{base:.3f}"]]
        )


def _median(costs: Sequence[Counter[str]], package: str) -> float:
    return statistics.median(found[package] for found in costs) / 1e6


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.driver")
    parser.add_argument("--rounds", type=int, default=9, help="of a chain that is reused  [default: 9]")
    parser.add_argument("--chains", type=int, default=3, help="fresh ones of each kind  [default: 3]")
    return parser.parse_args()


def main() -> None:
    given = options()
    packages = ", ".join(f"{name} {version(name)}" for name in ("mlflow", "torch", "segmentation-models-pytorch"))
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {packages}\n")
    with tempfile.TemporaryDirectory(prefix="segpipe-bench-") as name:
        folder = Path(name)
        root = phantom.simulate(folder, PATIENTS, 0)
        knobs = (*TINY, f"--data.root={root}", f"--tracking.outputs={folder / 'outputs'}")
        finished = environment(folder / "finished")
        ran(finished, "pipeline.py", *knobs)
        nothing_changed(finished, knobs, given.rounds)
        start_up(folder, knobs, given.chains)
        imports(finished, knobs)


if __name__ == "__main__":
    main()
