"""Architectures by name, built on segmentation-models-pytorch, taking images of any size."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from segpipe.config import ModelConfig, nearest
from segpipe.errors import InputError, one_line

DECODER_CHANNELS = (256, 128, 64, 32, 16)


class Architecture(NamedTuple):
    """One row: the smp class, the stride its input is padded to, its smallest input, and how far it follows
    `model.encoder_depth` (`decoder`: yes, and it takes decoder channels; `plain`: yes; `fixed`: no).
    """

    smp_class: str
    stride: int = 32
    smallest: int = 32
    depth: str = "fixed"


ARCHITECTURES = {
    "unet": Architecture("Unet", depth="decoder"),
    "unetplusplus": Architecture("UnetPlusPlus", depth="decoder"),
    "manet": Architecture("MAnet", depth="decoder"),
    "linknet": Architecture("Linknet", depth="plain"),
    "fpn": Architecture("FPN"),
    "pspnet": Architecture("PSPNet"),
    "deeplabv3": Architecture("DeepLabV3"),
    "deeplabv3plus": Architecture("DeepLabV3Plus"),
    "pan": Architecture("PAN", smallest=128),
    "upernet": Architecture("UPerNet"),
    "segformer": Architecture("Segformer"),
}
BATCH_OF_ONE_FAILS = ("pspnet", "deeplabv3", "deeplabv3plus")


class SegmentationModel(nn.Module):
    """An smp network that pads its input to what the architecture needs and crops its logits back."""

    def __init__(self, network: nn.Module, stride: int, smallest: int) -> None:
        super().__init__()
        self.network = network
        self.stride, self.smallest = stride, smallest

    def forward(self, images: Tensor) -> Tensor:
        """Images N,C,H,W to logits N,K,H,W, for any H and W."""
        height, width = images.shape[-2:]
        down, right = (self._missing(n) for n in (height, width))
        if down or right:
            images = functional.pad(
                images, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate"
            )
        logits: Tensor = self.network(images)
        return logits[..., down // 2 : down // 2 + height, right // 2 : right // 2 + width]

    def _missing(self, n: int) -> int:
        return max(-(-n // self.stride) * self.stride, self.smallest) - n


def check(config: ModelConfig) -> None:
    """Raise InputError where the encoder is unknown."""
    import segmentation_models_pytorch as smp

    known = smp.encoders.get_encoder_names()
    if config.encoder not in known and not config.encoder.startswith("tu-"):
        raise InputError(
            f"model.encoder={config.encoder}: unknown{nearest(config.encoder, known)}; or 'tu-' and a timm name"
        )


def build(config: ModelConfig, channels: int, classes: int, seed: int, pretrained: bool = True) -> SegmentationModel:
    """A network for `channels` image channels and `classes` foreground classes (one logit for one class, otherwise one
    for each and the background), its random weights drawn from `seed`.

    With `pretrained` false nothing is downloaded, whatever the config says: for weights that are loaded afterwards.
    Raises InputError where the names are unknown or the combination can't be built.
    """
    import segmentation_models_pytorch as smp

    row = ARCHITECTURES[config.arch]
    check(config)
    options: dict[str, object] = {}
    if row.depth != "fixed":
        options["encoder_depth"] = config.encoder_depth
    if row.depth == "decoder":
        options["decoder_channels"] = DECODER_CHANNELS[-config.encoder_depth :]
    weights = config.encoder_weights if pretrained and config.encoder_weights != "none" else None
    factory: Callable[..., nn.Module] = getattr(smp, row.smp_class)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = factory(
                config.encoder,
                encoder_weights=weights,
                in_channels=channels,
                classes=1 if classes == 1 else classes + 1,
                **options,
            )
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            reason = one_line(error)
            if weights and isinstance(error, OSError):
                reason = "ImageNet weights can't be downloaded (offline?); set model.encoder_weights=none"
            raise InputError(f"model.arch={config.arch} model.encoder={config.encoder}: {reason}") from None
    stride = row.stride if row.depth == "fixed" else 2**config.encoder_depth
    model = SegmentationModel(network, stride, row.smallest)
    _drop_unused(model, channels)
    return model


def _drop_unused(model: SegmentationModel, channels: int) -> None:
    """Replace the modules that take no part in a forward pass, such as encoder stages beyond the depth in use, which
    would otherwise be stored, counted and break DistributedDataParallel.
    """
    model.eval()
    side = max(64, model.smallest)
    model(torch.zeros(1, channels, side, side)).sum().backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None and p.requires_grad}
    model.zero_grad(set_to_none=True)
    model.train()
    _prune(model, "", unused)


def _prune(module: nn.Module, prefix: str, unused: set[str]) -> None:
    for name, child in module.named_children():
        path = f"{prefix}{name}."
        parameters = [path + n for n, _ in child.named_parameters()]
        if parameters and unused.issuperset(parameters):
            setattr(module, name, nn.Identity())
        else:
            _prune(child, path, unused)


def check_batches(arch: str, sizes: set[int]) -> None:
    """Raise InputError where the architecture normalises over a single value in a batch of one."""
    if 1 in sizes and arch in BATCH_OF_ONE_FAILS:
        raise InputError(f"train.batch_size: {arch} can't train on a batch of one; use 2 or more")


def parameter_count(model: nn.Module) -> int:
    """How many trainable numbers a network has."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
