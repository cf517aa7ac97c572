"""Device and precision, resolved in one place."""

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.config.sections import TrainConfig
from segpipe.errors import InputError

if TYPE_CHECKING:
    import torch

AMD = Path("/dev/kfd")
PROCESSOR, BF16_FLAGS = Path("/proc/cpuinfo"), {"avx512_bf16", "amx_bf16"}
# Values of ONEDNN_MAX_CPU_ISA below those with bf16 (oneDNN 3, "CPU Dispatcher Control").
WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}


def check(config: TrainConfig, *, training: bool) -> None:
    """Raise InputError for a device, or when training a precision, that is not there. Does without torch, which takes
    seconds to import.
    """
    if config.device == "cuda" or (training and config.precision == "fp16"):
        _check(config, driver_has_gpu(), training)


def driver_has_gpu() -> bool:
    """Whether a driver shows this process a GPU, CUDA_VISIBLE_DEVICES considered."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return AMD.exists()
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def device(config: TrainConfig) -> "torch.device":
    """Resolve train.device. Raises InputError for a GPU that is not there."""
    import torch

    has_gpu = torch.cuda.is_available()
    _check(config, has_gpu, training=False)
    return torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")


def processor_has_bf16() -> bool:
    """Whether this processor multiplies in bf16 itself, and oneDNN may use that; elsewhere it is several times slower
    than fp32.
    """
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_BF16 or not PROCESSOR.is_file():
        return False
    flags = next((line for line in PROCESSOR.read_text().splitlines() if line.startswith("flags")), "")
    return not BF16_FLAGS.isdisjoint(flags.split())


def may_gain_from_bf16(asked: str, device_type: str) -> bool:
    """Whether a precision `auto` has to be measured: on a processor with bf16."""
    return asked == "auto" and device_type == "cpu" and processor_has_bf16()


def precision(config: TrainConfig) -> str:
    """Resolve train.precision to fp32, bf16 or fp16; auto on a CPU is fp32 until `training.precision` has measured.
    Raises InputError where the device does not have it.
    """
    import torch

    on_gpu = device(config).type == "cuda"
    if config.precision == "auto":
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    _check(config, on_gpu, training=True)
    return config.precision


def _check(config: TrainConfig, has_gpu: bool, training: bool) -> None:
    if config.device == "cuda" and not has_gpu:
        raise InputError("train.device=cuda: no GPU found on this machine; use auto or cpu")
    if training and config.precision == "fp16" and (config.device == "cpu" or not has_gpu):
        raise InputError("train.precision=fp16 needs a GPU; use fp32 or bf16 on the CPU")
