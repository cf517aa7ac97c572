"""How long something takes, and which of two things is faster."""

import statistics
import time
from collections.abc import Callable

TIMES = 3
GAIN = 1.1


def seconds(act: Callable[[], object]) -> float:
    """How long something takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def clearly_faster(one: Callable[[], object], other: Callable[[], object]) -> bool:
    """Whether `one` is faster by a tenth at least: by the medians of three runs each, in turn, after one to warm up."""
    runs = [(seconds(one), seconds(other)) for _ in range(1 + TIMES)]
    first, second = (statistics.median(times) for times in zip(*runs[1:], strict=True))
    return bool(second > GAIN * first)
