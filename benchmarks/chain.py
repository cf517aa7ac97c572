"""The whole chain on fresh simulated patients: seconds a step, start-up, memory, and a second run that reuses all.

    python -m benchmarks.chain [any knob of pipeline.py]

Baseline: the imports a step can't do without, `python -c "import mlflow, torch, segmentation_models_pytorch"`.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

from segpipe.files.project import PROJECT

BASELINE = "import mlflow, torch, segmentation_models_pytorch"


def resident(root: int) -> int:
    """Bytes of memory that a process and all its descendants hold, shared pages counted once (PSS)."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def timed(program: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Seconds a command takes and the most memory it and its children held."""
    peak = 0
    began = time.perf_counter()
    with subprocess.Popen(program, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL) as process:

        def watch() -> None:
            nonlocal peak
            while process.poll() is None:
                peak = max(peak, resident(process.pid))
                time.sleep(0.5)

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - began
        watcher.join()
    if code:
        raise SystemExit(f"{' '.join(program)} ended with {code}")
    return seconds, peak


def main() -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("mlflow", "torch", "segmentation-models-pytorch"))
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    with tempfile.TemporaryDirectory(prefix="segpipe-bench-") as folder:
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        imports = statistics.median(timed([sys.executable, "-c", BASELINE], environment)[0] for _ in range(3))
        print(f"baseline: {BASELINE}: {imports:.1f} s (median of 3)")
        program = [sys.executable, "pipeline.py", f"--data.root={folder}", *sys.argv[1:]]
        seconds, peak = timed(program, environment)
        print(f"chain: {seconds / 60:.1f} min, {peak / 2**30:.1f} GiB at most")
        report(environment["MLFLOW_TRACKING_URI"], imports)
        again = timed(program, environment)[0]
        print(f"chain, all reused: {again:.1f} s, {again / seconds:.3f} of the first, {again / imports:.1f} x baseline")


def report(uri: str, imports: float) -> None:
    """A line for each step: seconds in all, and from the driver's launch to the first line of the step's own work."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    print(f"{'step':<12}{'all s':>8}{'start s':>9}{'x baseline':>12}  key figure")
    for run in client.search_runs(experiments, order_by=["attributes.start_time"]):
        tags = run.data.tags
        if "segpipe.work_began" not in tags:
            continue
        start = (int(tags["segpipe.work_began"]) - run.info.start_time) / 1000
        whole = (run.info.end_time - run.info.start_time) / 1000
        print(f"{tags['segpipe.step']:<12}{whole:>8.1f}{start:>9.1f}{start / imports:>12.2f}  {tags['segpipe.figure']}")


if __name__ == "__main__":
    main()
