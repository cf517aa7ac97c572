"""Architectures by name, built on segmentation-models-pytorch, for images of any size."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from segpipe.config.sections import ModelConfig
from segpipe.errors import InputError, nearest, one_line
from segpipe.models import encoder_weights, encoders
from segpipe.models.attention_unet import add_gates
from segpipe.models.group_norm import replace_batch_norm
from segpipe.models.pruning import drop_unused

DECODER_CHANNELS = (256, 128, 64, 32, 16)
SMALLEST = 32
VIT_MODULES = ("vision_transformer", "deit", "eva")
DEPTH = ("encoder_depth",)
LEVELS = ("encoder_depth", "decoder_channels")
OPTIONS_WITH_KNOBS = {
    "encoder_name": "model.encoder",
    "encoder_depth": "model.encoder_depth",
    "encoder_weights": "model.encoder_weights",
    "in_channels": "data.channels",
    "classes": "data.classes",
}
REFUSED_OPTIONS = ("activation", "aux_params")


class Architecture(NamedTuple):
    """One row: the class in smp that builds it, which of its options follow `model.encoder_depth`, what it asks of an
    input and of an encoder, and the smallest encoder to try it with.
    """

    builder: str
    follow_depth: tuple[str, ...] = DEPTH
    gated: bool = False  # a gate on every skip connection
    stride: int = 1  # sides are multiples of this and of the encoder's own stride
    cells: int = 1  # fewest cells along a side of the encoder's last feature map
    pools: bool = False  # normalises globally pooled features: a single value for a batch of one
    encoder_options: Mapping[str, Any] = {}
    test_encoder: str = "tu-test_resnet"


ARCHITECTURES = {
    "unet": Architecture("Unet", LEVELS),
    "attention_unet": Architecture("Unet", LEVELS, gated=True),
    "unetplusplus": Architecture("UnetPlusPlus", LEVELS),
    "manet": Architecture("MAnet", LEVELS),
    "linknet": Architecture("Linknet"),
    "fpn": Architecture("FPN", ()),
    "pspnet": Architecture("PSPNet", ()),
    "deeplabv3": Architecture("DeepLabV3", pools=True),
    "deeplabv3plus": Architecture("DeepLabV3Plus", pools=True),
    "pan": Architecture("PAN", cells=8, pools=True),
    "upernet": Architecture("UPerNet", pools=True),
    "segformer": Architecture("Segformer"),
    "dpt": Architecture("DPT", (), stride=32, encoder_options={"dynamic_img_size": True}, test_encoder="tu-test_vit3"),
}


class SegmentationModel(nn.Module):
    """An smp network that pads its input to what the architecture needs and crops its logits back."""

    def __init__(self, network: nn.Module, stride: int, smallest: int) -> None:
        super().__init__()
        self.network = network
        self.stride, self.smallest = stride, smallest

    def forward(self, images: Tensor) -> Tensor:
        """Images N,C,H,W to logits N,K,H,W, for any H and W.

        Raises InputError if batch normalisation meets a single value, in a batch of one.
        """
        height, width = images.shape[-2:]
        padded, top, left = self._pad(images)
        try:
            logits: Tensor = self.network(padded)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise _batch_of_one("this network, at this image size,") from None
        return logits[..., top : top + height, left : left + width]

    def features(self, images: Tensor) -> Tensor:
        """Images N,C,H,W to the features of the encoder's last stage, N,E,h,w."""
        encoder: Any = self.network.encoder
        stages = encoder(self._pad(images)[0])
        if isinstance(stages, tuple):  # a vision transformer's come with its prefix tokens
            stages = stages[0]
        last: Tensor = stages[-1]
        return last

    def _pad(self, images: Tensor) -> tuple[Tensor, int, int]:
        """The images on the smallest grid that the network takes, and how many rows and columns come before theirs."""
        down, right = (max(-(-n // self.stride) * self.stride, self.smallest) - n for n in images.shape[-2:])
        top, left = down // 2, right // 2
        if down or right:
            images = functional.pad(images, (left, right - left, top, down - top), mode="replicate")
        return images, top, left


def check(config: ModelConfig) -> None:
    """Raise InputError if the encoder or an option is unknown, the architecture cannot use the encoder, or the weights
    do not exist. Nothing is built or downloaded.
    """
    import segmentation_models_pytorch as smp

    encoders.check(config)
    if config.encoder.startswith(encoders.TIMM):
        _check_timm(config)
    _check_options(config, getattr(smp, ARCHITECTURES[config.arch].builder))


def _check_timm(config: ModelConfig) -> None:
    import timm

    name = config.encoder.removeprefix(encoders.TIMM)
    if not timm.is_model(name):
        raise encoders.unknown(config.encoder, timm.list_models())
    if timm.models.is_model_in_modules(name, VIT_MODULES) != (config.arch in encoders.VIT_ONLY):
        raise encoders.unfit(config)
    if config.initialisation == "img" and not timm.models.is_model_pretrained(name):
        raise encoders.without_imagenet(config.encoder)


def _check_options(config: ModelConfig, constructor: Callable[..., Any]) -> None:
    """Raise InputError for an option that `constructor` does not declare, that has a knob of its own or that would
    change what a network answers. What is passed on as **kwargs is no option: encoders ignore misspelt names there.
    """
    known = [
        name
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name not in (*OPTIONS_WITH_KNOBS, *REFUSED_OPTIONS)
    ]
    for name in config.options:
        if name in OPTIONS_WITH_KNOBS:
            raise InputError(f"model.options: {name} is a knob of its own; set {OPTIONS_WITH_KNOBS[name]}")
        if name in REFUSED_OPTIONS:
            raise InputError(f"model.options: {name} can't be set, losses and metrics need plain logits; leave it out")
        if name not in known:
            hint = nearest(name, known) or f" (it has: {', '.join(known)})"
            raise InputError(f"model.options: {config.arch} has no option '{name}'{hint}")


def build(config: ModelConfig, channels: int, classes: int, seed: int, pretrained: bool = True) -> SegmentationModel:
    """A network for `channels` image channels and `classes` foreground classes (one logit for one class, otherwise one
    for each and the background), its random weights drawn from `seed`.

    With `pretrained` false nothing is read or downloaded, whatever the config says: for weights that are loaded
    afterwards. Raises InputError where the names are unknown, the combination can't be built or the encoder's weights
    are not available.
    """
    if not pretrained:
        config = config.model_copy(update={"encoder_weights": "none"})
    check(config)
    row = ARCHITECTURES[config.arch]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _build_network(config, row, channels, classes)
            encoder: Any = network.encoder
            names = _every_name(config, encoder, channels) if config.initialisation in ("file", "bundled") else set()
            stride = math.lcm(row.stride, encoder.output_stride)
            if stride not in (row.stride, encoder.output_stride):
                raise ValueError(f"patches of {encoder.output_stride} pixels, {config.arch} takes 8, 16 or 32")
            model = SegmentationModel(network, stride, max(SMALLEST, row.cells * stride))
            if config.norm != "batch":
                replace_batch_norm(network, config.norm)
            side = max(64, model.smallest)
            drop_unused(network, channels, side, side + stride)
    except Exception as error:  # smp and timm raise anything for a name or an option that they can't use
        raise _refusal(config, error) from None
    if config.initialisation == "file":
        encoder_weights.load(config.encoder_weights, encoder, names)
    elif config.initialisation == "bundled":
        encoder_weights.load_bundled(config.encoder, encoder, names)
    return model


def _build_network(config: ModelConfig, row: Architecture, channels: int, classes: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    imagenet = True if config.encoder.startswith(encoders.TIMM) else "imagenet"  # a timm name says itself which weights
    depth = {"encoder_depth": config.encoder_depth, "decoder_channels": DECODER_CHANNELS[-config.encoder_depth :]}
    arguments: dict[str, Any] = {
        "encoder_weights": imagenet if config.initialisation == "img" else None,
        "in_channels": channels,
        "classes": 1 if classes == 1 else classes + 1,
        **row.encoder_options,
        **{name: depth[name] for name in row.follow_depth},
        **config.options,
    }
    network: nn.Module = getattr(smp, row.builder)(config.encoder, **arguments)
    if row.gated:
        add_gates(network, arguments["decoder_channels"])
    return network


def _every_name(config: ModelConfig, encoder: nn.Module, channels: int) -> set[str]:
    """Names of an encoder's weights, with stages beyond the depth in use and the heads of timm's networks."""
    import segmentation_models_pytorch as smp

    if config.encoder.startswith(encoders.TIMM):
        import timm

        whole = timm.create_model(config.encoder.removeprefix(encoders.TIMM), in_chans=channels).state_dict()
        names = {f"model.{name}" for name in whole}
        if config.arch in encoders.VIT_ONLY:
            return names | set(encoder.state_dict())
        every = smp.encoders.get_encoder(config.encoder, in_channels=channels, depth=5, weights=None).state_dict()
        return names | set(every)
    return set(smp.encoders.get_encoder(config.encoder, in_channels=channels, depth=5, weights=None).state_dict())


def _refusal(config: ModelConfig, error: Exception) -> InputError:
    """What was raised while a network was built and tried, for the user."""
    if config.initialisation == "img" and isinstance(error, OSError):
        return InputError(
            f"model.encoder_weights=imagenet: the weights of {config.encoder} can't be downloaded (offline?);"
            " set model.encoder_weights=none, or to a local file of them"
        )
    given = f" with model.options {config.options}" if config.options else ""
    remedy = "other options or another encoder" if config.options else "another encoder or architecture"
    where = f"model.arch={config.arch} model.encoder={config.encoder}{given}"
    return InputError(f"{where}: {one_line(error).rstrip('.!')}; try {remedy}")


def check_batches(config: ModelConfig, sizes: set[int]) -> None:
    """Raise InputError if the architecture would normalise a single value in a batch of one."""
    if 1 in sizes and config.norm == "batch" and ARCHITECTURES[config.arch].pools:
        raise _batch_of_one(config.arch)


def _batch_of_one(what: str) -> InputError:
    return InputError(
        f"train.batch_size: {what} can't train on a batch of one under batch normalisation;"
        " use 2 or more, or set model.norm=group"
    )


def parameter_count(model: nn.Module) -> int:
    """How many trainable parameters a network has."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
