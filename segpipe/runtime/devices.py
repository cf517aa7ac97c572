"""Device and precision, resolved in one place."""

import torch

from segpipe.config.sections import TrainConfig
from segpipe.errors import InputError


def device(config: TrainConfig) -> torch.device:
    """Resolve train.device. Raises InputError for a GPU that is not there."""
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise InputError("train.device=cuda: no GPU found; use auto or cpu")
    return torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")


def precision(config: TrainConfig) -> str:
    """Resolve train.precision to fp32, bf16 or fp16. Raises InputError where the device does not have it."""
    on_gpu = device(config).type == "cuda"
    if config.precision == "auto":
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if config.precision == "fp16" and not on_gpu:
        raise InputError("train.precision=fp16 needs a GPU; use fp32 or bf16 on the CPU")
    return config.precision
