"""How the processes of this machine share its cores."""

import os

SPINS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # any of them says how long a thread spins
SHARED = {"GOMP_SPINCOUNT": "1000"}


def share() -> None:
    """Let OpenMP's threads, here and in processes that are started, soon give up a core that others need, unless the
    environment says how long they spin while they wait. It has to be called before torch is imported.

    By default libgomp's spin for milliseconds. Two trainings at once, each with a thread for every core, then wait for
    threads that can't run because others spin.
    """
    if not any(name in os.environ for name in SPINS):
        os.environ.update(SHARED)
