"""The processes of a training, through accelerate and torch.distributed.

Several processes, one a GPU, are started by torchrun; with a single one every function here is the identity.
"""

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as group
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # exported at run time only

from segpipe.config.sections import TrainConfig
from segpipe.runtime.devices import device, precision

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = timedelta(hours=12)
T = TypeVar("T")


def start(config: TrainConfig) -> "Accelerator":
    """The accelerator of the rest of the training.

    Joins the other processes where torchrun has started several; as torchrun notices a lost one, waiting for the others
    has no short limit. Raises InputError for a device or a precision that is not there.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    scaled, on_cpu = precision(config) == "fp16", device(config).type == "cpu"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and launched() and not group.is_initialized():
        _join("gloo" if on_cpu else "nccl")
    if not launched():  # an earlier training in this process may have had another precision
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        mixed_precision="fp16" if scaled else "no",  # of the others the learner takes care
        cpu=on_cpu,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )


def _join(backend: str) -> None:
    """Meet the other processes under a prefix of this attempt's own.

    torchrun keeps one store over its restarts, in which torch 2.15 no longer separates them: restarted processes looked
    for the addresses of the lost ones, and hung.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=PATIENCE)
    attempt = PrefixStore(f"segpipe/{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    own, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    group.init_process_group(backend, store=attempt, rank=own, world_size=count, timeout=PATIENCE)


def launched() -> bool:
    """Whether torchrun, or a scheduler that sets the same variables, has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def world() -> int:
    """How many processes train together."""
    return group.get_world_size() if group.is_initialized() else 1


def rank() -> int:
    """The number of this process; 0 is the one that writes."""
    return group.get_rank() if group.is_initialized() else 0


def parts(n: int) -> list[range]:
    """Positions 0..n-1 of a batch, one range for each process."""
    ends = [n * (r + 1) // world() for r in range(world())]
    return [range(first, last) for first, last in zip([0, *ends], ends, strict=False)]


def lost_one() -> bool:
    """Whether another process that torchrun started on this machine has died."""
    import psutil

    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        mine, peers = psutil.Process().cmdline(), psutil.Process(os.getppid()).children()
        alive = [peer for peer in peers if peer.status() != psutil.STATUS_ZOMBIE and peer.cmdline() == mine]
    except psutil.NoSuchProcess:
        return True
    return len(alive) < int(os.environ["LOCAL_WORLD_SIZE"])


def share(value: T) -> T:
    """Process 0's value, on every process. It must be picklable."""
    values = [value]
    if world() > 1:
        group.broadcast_object_list(values, src=0)
    return values[0]


def synchronise(module: nn.Module) -> None:
    """Give every process the buffers of process 0, such as running means, which each updates from its own samples."""
    if world() > 1:
        for buffer in module.buffers():
            group.broadcast(buffer, src=0)


class _Total(torch.autograd.Function):
    """Sum over processes. DistributedDataParallel averages gradients, hence the factor in `backward`."""

    @staticmethod
    def forward(_ctx: Any, value: Tensor) -> Tensor:
        summed = value.clone()
        group.all_reduce(summed)
        return summed

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.mul(gradients[0], world())


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, the same on each, with a gradient."""
    if world() == 1:
        return value
    result: Tensor = _Total.apply(value)
    return result
