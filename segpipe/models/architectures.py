"""Architectures by name, built on segmentation-models-pytorch, taking images of any size."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from segpipe.config.sections import ModelConfig
from segpipe.errors import InputError, one_line
from segpipe.models import encoder_weights, encoders, options
from segpipe.models.attention_unet import attention_unet
from segpipe.models.group_norm import replace_batch_norm
from segpipe.models.pruning import drop_unused

DECODER_CHANNELS = (256, 128, 64, 32, 16)
SMALLEST = 32
VIT_MODULES = ("vision_transformer", "deit", "eva")
Options = dict[str, Any]


def _fixed(_depth: int) -> Options:
    return {}


def _plain(depth: int) -> Options:
    return {"encoder_depth": depth}


def _with_decoder(depth: int) -> Options:
    return {"encoder_depth": depth, "decoder_channels": DECODER_CHANNELS[-depth:]}


class Architecture(NamedTuple):
    """One row: what builds it (a name in smp, or ours) and from which options for a `model.encoder_depth`; what it asks
    of an input and of an encoder; and the smallest encoder to try it with.
    """

    builder: str | Callable[..., nn.Module]
    follow_depth: Callable[[int], Options]
    stride: int = 1  # sides are multiples of this and of the encoder's own stride
    cells: int = 1  # fewest cells along a side of the encoder's last feature map
    pools: bool = False  # normalises globally pooled features: a single value for a batch of one
    encoder_options: Mapping[str, Any] = {}
    test_encoder: str = "tu-test_resnet"


ARCHITECTURES = {
    "unet": Architecture("Unet", _with_decoder),
    "attention_unet": Architecture(attention_unet, _with_decoder),
    "unetplusplus": Architecture("UnetPlusPlus", _with_decoder),
    "manet": Architecture("MAnet", _with_decoder),
    "linknet": Architecture("Linknet", _plain),
    "fpn": Architecture("FPN", _fixed),
    "pspnet": Architecture("PSPNet", _fixed),
    "deeplabv3": Architecture("DeepLabV3", _plain, pools=True),
    "deeplabv3plus": Architecture("DeepLabV3Plus", _plain, pools=True),
    "pan": Architecture("PAN", _plain, cells=8, pools=True),
    "upernet": Architecture("UPerNet", _plain, pools=True),
    "segformer": Architecture("Segformer", _plain),
    "dpt": Architecture(
        "DPT",
        _fixed,
        stride=32,
        encoder_options={"dynamic_img_size": True},
        test_encoder="tu-test_vit3",
    ),
}


class SegmentationModel(nn.Module):
    """An smp network that pads its input to what the architecture needs and crops its logits back."""

    def __init__(self, network: nn.Module, stride: int, smallest: int) -> None:
        super().__init__()
        self.network = network
        self.stride, self.smallest = stride, smallest

    def forward(self, images: Tensor) -> Tensor:
        """Images N,C,H,W to logits N,K,H,W, for any H and W.

        Raises InputError where batch normalisation meets a single value, in a batch of one.
        """
        height, width = images.shape[-2:]
        down, right = (self._missing(n) for n in (height, width))
        try:
            logits: Tensor = self.network(self._padded(images, down, right))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise _batch_of_one("this network, at this image size,") from None
        return logits[..., down // 2 : down // 2 + height, right // 2 : right // 2 + width]

    def features(self, images: Tensor) -> Tensor:
        """Images N,C,H,W to what the encoder's last stage makes of them, N,E,h,w."""
        down, right = (self._missing(n) for n in images.shape[-2:])
        encoder: Any = self.network.encoder
        stages = encoder(self._padded(images, down, right))
        if isinstance(stages, tuple):  # a vision transformer's come with its prefix tokens
            stages = stages[0]
        last: Tensor = stages[-1]
        return last

    def _padded(self, images: Tensor, down: int, right: int) -> Tensor:
        if not down and not right:
            return images
        return functional.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate")

    def _missing(self, n: int) -> int:
        return max(-(-n // self.stride) * self.stride, self.smallest) - n


def check(config: ModelConfig) -> None:
    """Raise InputError where the encoder or an option is unknown, the architecture can't use such an encoder, or there
    are no such weights. Nothing is built or downloaded.
    """
    encoders.check(config)
    if config.encoder.startswith(encoders.TIMM):
        _check_timm(config)
    options.checked(config.arch, _constructor(ARCHITECTURES[config.arch]), config.options)


def _check_timm(config: ModelConfig) -> None:
    import timm

    name = config.encoder.removeprefix(encoders.TIMM)
    if not timm.is_model(name):
        raise encoders.unknown(config.encoder, timm.list_models())
    if timm.models.is_model_in_modules(name, VIT_MODULES) != (config.arch in encoders.VIT_ONLY):
        raise encoders.unfit(config)
    if config.initialisation == "img" and not timm.models.is_model_pretrained(name):
        raise encoders.without_imagenet(config.encoder)


def build(config: ModelConfig, channels: int, classes: int, seed: int, pretrained: bool = True) -> SegmentationModel:
    """A network for `channels` image channels and `classes` foreground classes (one logit for one class, otherwise one
    for each and the background), its random weights drawn from `seed`.

    With `pretrained` false nothing is read or downloaded, whatever the config says: for weights that are loaded
    afterwards. Raises InputError where the names are unknown, the combination can't be built or the encoder's weights
    can't be had.
    """
    if not pretrained:
        config = config.model_copy(update={"encoder_weights": "none"})
    check(config)
    row = ARCHITECTURES[config.arch]
    with _told(config), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(config, row, channels, classes)
        encoder: Any = network.encoder
        names = _every_name(config, encoder, channels) if config.initialisation == "file" else set()
        stride = math.lcm(row.stride, encoder.output_stride)
        if stride not in (row.stride, encoder.output_stride):
            raise ValueError(f"patches of {encoder.output_stride} pixels, {config.arch} takes 8, 16 or 32")
        model = SegmentationModel(network, stride, max(SMALLEST, row.cells * stride))
        if config.norm == "group":
            replace_batch_norm(network)
        side = max(64, model.smallest)
        drop_unused(network, channels, side, side + stride)
    if config.initialisation == "file":
        encoder_weights.load(config.encoder_weights, encoder, names)
    return model


def _network(config: ModelConfig, row: Architecture, channels: int, classes: int) -> nn.Module:
    imagenet = config.encoder.startswith(encoders.TIMM) or "imagenet"  # a timm name says itself which weights
    arguments = {
        "encoder_weights": imagenet if config.initialisation == "img" else None,
        "in_channels": channels,
        "classes": 1 if classes == 1 else classes + 1,
        **row.encoder_options,
        **row.follow_depth(config.encoder_depth),
        **options.checked(config.arch, _constructor(row), config.options),
    }
    return _constructor(row)(config.encoder, **arguments)


def _constructor(row: Architecture) -> Callable[..., nn.Module]:
    import segmentation_models_pytorch as smp

    constructor: Callable[..., nn.Module] = getattr(smp, row.builder) if isinstance(row.builder, str) else row.builder
    return constructor


def _every_name(config: ModelConfig, encoder: nn.Module, channels: int) -> set[str]:
    """Names of an encoder's weights, those of the stages beyond the depth in use included."""
    import segmentation_models_pytorch as smp

    if config.arch in encoders.VIT_ONLY:
        return set(encoder.state_dict())
    return set(smp.encoders.get_encoder(config.encoder, in_channels=channels, depth=5, weights=None).state_dict())


@contextmanager
def _told(config: ModelConfig) -> Iterator[None]:
    """Tell whatever smp and timm raise while a network is built and tried as one InputError."""
    try:
        yield
    except Exception as error:  # what a constructor raises for a name or an option it can't use is anybody's guess
        if config.initialisation == "img" and isinstance(error, OSError):
            raise InputError(
                f"model.encoder_weights=imagenet: the weights of {config.encoder} can't be downloaded (offline?);"
                " set model.encoder_weights=none, or to a local file of them"
            ) from None
        given = f" with model.options {config.options}" if config.options else ""
        remedy = "other options or another encoder" if config.options else "another encoder or architecture"
        raise InputError(
            f"model.arch={config.arch} model.encoder={config.encoder}{given}:"
            f" {one_line(error).rstrip('.!')}; try {remedy}"
        ) from None


def check_batches(config: ModelConfig, sizes: set[int]) -> None:
    """Raise InputError where the architecture would normalise a single value in a batch of one."""
    if 1 in sizes and config.norm == "batch" and ARCHITECTURES[config.arch].pools:
        raise _batch_of_one(config.arch)


def _batch_of_one(what: str) -> InputError:
    return InputError(
        f"train.batch_size: {what} can't train on a batch of one under batch normalisation;"
        " use 2 or more, or set model.norm=group"
    )


def parameter_count(model: nn.Module) -> int:
    """How many trainable numbers a network has."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
