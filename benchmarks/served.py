"""What the benchmarks of serving and prediction ask about: a network with random weights, pictures, this machine."""

import argparse
import io
import os
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.data import codecs, transform
from segpipe.inference.predictor import Predictor
from segpipe.inference.spec import ModelSpec
from segpipe.models import architectures

BLOBS, FOREGROUND = 6, 0.05  # blobs in a picture; share of its pixels that the model marks
PACKAGES = ("mlflow", "torch", "segmentation-models-pytorch", "numpy", "pillow", "uvicorn")
Pixels = NDArray[np.uint8]


def options(program: str, numbers: dict[str, int]) -> argparse.ArgumentParser:
    """What every benchmark of the served network takes, and its own numbers."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{program}")
    parser.add_argument("--arch", default="unet")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS, here and of the servers  [default: as it is]")
    for name, number in {"depth": 4, "size": 256, "channels": 1, **numbers}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=number)
    return parser


def picture(side: int, channels: int, number: int) -> Pixels:
    """H,W or, of three channels, H,W,3: bright blobs on a noisy ground, others for each number."""
    rng, (y, x) = np.random.default_rng([side, channels, number]), np.ogrid[:side, :side]
    blobs = np.zeros((side, side), bool)
    for radius in rng.uniform(side / 24, side / 8, BLOBS):
        down, along = rng.uniform(0, side, 2)
        blobs |= (y - down) ** 2 + (x - along) ** 2 < radius**2
    noise = rng.normal(60, 12, (side, side) if channels == 1 else (side, side, channels))
    pixels: Pixels = np.clip(noise + 110 * (blobs if channels == 1 else blobs[..., None]), 0, 255).astype(np.uint8)
    return pixels


def png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def configured(given: argparse.Namespace) -> Config:
    knobs = {"model.arch": given.arch, "model.encoder": given.encoder, "model.encoder_depth": given.depth}
    return settings.load(None, {**{name: str(v) for name, v in knobs.items()}, "preprocess.size": str(given.size)})


def predictor(config: Config, channels: int) -> Predictor:
    """The network on the CPU; its threshold marks as large a share of a picture as blobs have."""
    names = ("grey",) if channels == 1 else ("red", "green", "blue")
    shape = {"kind": "picture", "channels": names, "classes": ("foreground",)}
    spec = ModelSpec(model=config.model, preprocess=config.preprocess, **shape)
    network = architectures.build(config.model, len(names), 1, seed=0)
    image = codecs.decode(png(picture(max(config.preprocess.size), channels, 0)), "picture").array
    found = Predictor(spec, network).segment(image, 0.5).foreground
    return Predictor(spec.model_copy(update={"threshold": float(np.quantile(found, 1 - FOREGROUND))}), network)


def as_seen(predictor: Predictor, data: bytes) -> Tensor:
    """A picture as the network gets it: 1,C,h,w in channels-last order."""
    prepared = predictor.prepare(codecs.decode(data, "picture").array)
    if not isinstance(prepared.lying, transform.Fit):
        raise TypeError("preprocess.fit=resize has one plane for a picture")
    slices = torch.from_numpy(prepared.lying.image(prepared.image, prepared.lowest))
    return slices.contiguous(memory_format=torch.channels_last)


def normalised(predictor: Predictor, data: bytes) -> Tensor:
    """A picture C,H,W of its own size, as a client has to prepare it where the model does not."""
    return torch.from_numpy(predictor.prepare(codecs.decode(data, "picture").array).image[:, 0])


def threads(given: argparse.Namespace) -> None:
    """Let this process and those it starts use as many as asked for."""
    if given.threads:
        os.environ["OMP_NUM_THREADS"] = str(given.threads)
        torch.set_num_threads(given.threads)


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    hardware = [*names, f"{os.cpu_count()} cores", f"{torch.get_num_threads()} threads"]
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    load = f"load {os.getloadavg()[0]:.1f} before"
    return f"{', '.join([*hardware, load])}; Python {platform.python_version()}, {packages}"
