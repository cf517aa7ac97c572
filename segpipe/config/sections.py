"""Every knob, declared once: type, bounds, default and a one-line description."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _square(value: object) -> object:
    parts = (value,) if isinstance(value, int | float) else _split(value)
    return (parts[0], parts[0]) if isinstance(parts, tuple | list) and len(parts) == 1 else parts


def _arch(value: object) -> object:
    return value.lower().replace("++", "plusplus").replace("v3+", "v3plus") if isinstance(value, str) else value


def _pairs(value: object) -> object:
    """`name=value,name=[1,2]` as a mapping; the values are YAML."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in re.split(r",(?![^\[]*\])", value) if part.strip()]
    if not all(sign for _, sign, _ in pairs):
        raise ValueError("expected name=value, separated by commas")
    return {name.strip(): yaml.safe_load(text) for name, _, text in pairs}


def _file_name(value: str) -> str:
    if value and (re.search(NOT_IN_NAMES, value) or not value.strip(" .") or len(value.encode()) > LONGEST_NAME):
        raise ValueError(
            f"expected a name, of at most {LONGEST_NAME} bytes, without / and \\ and control characters, not only dots"
        )
    return value


NOT_IN_NAMES = r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
LONGEST_NAME = 200  # a file system allows 255, and a number may follow
Architecture = Annotated[
    Literal[
        "attention_unet", "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3", "deeplabv3plus",
        "pan", "upernet", "segformer", "dpt",
    ],
    BeforeValidator(_arch),
]  # fmt: skip
FileName = Annotated[str, AfterValidator(_file_name)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Architectures = Annotated[tuple[Architecture, ...], BeforeValidator(_split)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], BeforeValidator(_split)]
Weights = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_split)]
LossName = Literal[
    "dice", "bce", "dice_bce", "focal", "tversky", "focal_tversky", "lovasz", "jaccard", "mcc", "cldice"
]  # fmt: skip
StepName = Literal["preprocess", "train", "evaluate", "register"]
Timeouts = Annotated[dict[StepName, Annotated[float, Field(gt=0)]], BeforeValidator(_pairs)]
Retries = Annotated[dict[StepName, Annotated[int, Field(ge=0, le=100)]], BeforeValidator(_pairs)]
Options = Annotated[dict[str, Any], BeforeValidator(_pairs)]
Millimetres = Annotated[float, Field(gt=0, le=1000)]
Pixel = Annotated[tuple[()] | tuple[Millimetres, Millimetres], BeforeValidator(_square)]
Window = Annotated[tuple[()] | tuple[float, float], BeforeValidator(_split)]
Side = Annotated[int, Field(ge=16, le=4096)]
Size = Annotated[tuple[Side, Side], BeforeValidator(_square)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Port = Literal["auto"] | Annotated[int, Field(ge=0, le=65_535)]
Threshold = Literal["auto"] | Annotated[float, Field(gt=0, lt=1)]
MetricName = Literal[
    "dice", "iou", "precision", "recall", "specificity", "hd95", "assd", "nsd", "cldice", "volume_error_ml",
    "volume_error_relative", "lesion_recall", "lesion_precision", "lesion_f1",
]  # fmt: skip
Floors = Annotated[dict[MetricName, float], BeforeValidator(_pairs)]


class Section(BaseModel):
    """A frozen group of knobs; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """The raw data."""

    format: Literal["phantom", "nifti", "folder", "stacks"] = Field(
        "phantom", description="how the raw data lies on disk (default with data.root: what is found there)"
    )
    root: str = Field("", description="folder with the raw data (default: $SEGPIPE_DATA; the phantom writes to data/)")
    channels: Names = Field(
        (),
        description="nifti: file suffixes, default dwi,adc; folder, stacks: 'grey' (default) or 'red,green,blue'",
    )
    classes: Names = Field((), description="names of mask values 1,2,...; empty: binary masks of any two values")
    mask_suffix: str = Field(
        "msk",
        min_length=1,
        description="nifti: suffix of the mask files under derivatives/; pictures and stacks: of those in masks/",
    )
    ignore_label: int = Field(-1, ge=-1, le=255, description="mask value left out of loss and metrics; -1: none")
    patients: int = Field(40, ge=3, le=10_000, description="phantom: how many patients to simulate")
    site_gap: float = Field(
        1.0, ge=0, le=3, description="phantom: how far apart its three sites' scanners are; 0: alike"
    )

    @model_validator(mode="after")
    def _known_channels(self) -> "DataConfig":
        pictures = self.format in ("folder", "stacks")
        if pictures and self.channels not in ((), ("grey",), ("red", "green", "blue")):
            raise ValueError("data.channels for pictures and stacks is 'grey' or 'red,green,blue'")
        if self.format == "phantom" and set(self.channels) - {"dwi", "adc"}:
            raise ValueError("data.channels for the phantom are 'dwi' and 'adc'")
        if len(set(self.classes)) < len(self.classes) or len(set(self.channels)) < len(self.channels):
            raise ValueError("data.channels and data.classes must not name anything twice")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """The foreground classes; one named `foreground` for binary masks."""
        return self.classes or ("foreground",)


class PreprocessConfig(Section):
    """From raw intensities and any size to what the network sees."""

    size: Size = Field((96, 96), description="height,width the network sees (one number: square)")
    fit: Literal["resize", "patch", "crop"] = Field(
        "resize",
        description="resize keeps the aspect ratio and pads; patch trains on windows at the data's own scale; "
        "crop is that of models from earlier versions",
    )
    spacing: Pixel = Field(
        (), description="fit=patch: mm a pixel, height,width (one number: square), that cases are resampled to"
    )
    longest: int = Field(
        0, ge=0, le=16_384, description="fit=patch: pixels of the longer side that cases are resampled to; 0: as it is"
    )
    context: int = Field(
        0, ge=0, le=3, description="volumes: neighbours of a slice, on each side, that the network sees as channels"
    )
    clip_low: float = Field(0.5, ge=0, lt=50, description="lower percentile at which a channel is clipped")
    clip_high: float = Field(99.5, gt=50, le=100, description="upper percentile at which a channel is clipped")
    normalise: Literal["zscore", "minmax", "ct"] = Field(
        "zscore",
        description="intensity scale, per case and channel; ct: preprocess.window to -1..1, alike for all cases",
    )
    window: Window = Field(
        (), description="normalise=ct: lowest,highest intensity that is told apart, in the data's unit"
    )
    clahe: bool = Field(False, description="contrast-limited adaptive histogram equalisation, slice by slice")

    @property
    def planes(self) -> int:
        """Slices that the network sees at once."""
        return 2 * self.context + 1

    @model_validator(mode="after")
    def _consistent(self) -> "PreprocessConfig":
        if (self.normalise == "ct") != bool(self.window):
            raise ValueError("preprocess.normalise=ct and preprocess.window need each other; give both or neither")
        if self.window and self.window[0] >= self.window[1]:
            raise ValueError("preprocess.window: the first value must be below the second")
        if self.spacing and self.longest:
            raise ValueError("preprocess.spacing and preprocess.longest both say how large a pixel is; leave out one")
        return self


class SplitConfig(Section):
    """Patients for training, validation and test, balanced over sites."""

    val: Fraction = Field(0.15, description="share of patients for validation")
    test: Fraction = Field(0.25, description="share of patients for the test set")
    min_patients: int = Field(3, ge=1, description="fewer patients than this are refused")

    @model_validator(mode="after")
    def _room_for_training(self) -> "SplitConfig":
        if self.val + self.test >= 1:
            raise ValueError("split.val + split.test must leave patients to train on: below 1")
        return self


class CheckConfig(Section):
    """What is wrong with a data set as a whole."""

    duplicates: Literal["error", "warn"] = Field(
        "error", description="the same picture in two splits: ends preprocess, or is only told"
    )
    distance: int = Field(
        20,
        ge=0,
        le=64,
        description="pictures look the same whose 255-bit perceptual hashes differ in so many bits at most",
    )


class ModelConfig(Section):
    """The network."""

    arch: Architecture = Field("unet", description="architecture; 'unet++' and 'deeplabv3+' mean the same as ...plus")
    encoder: str = Field("resnet18", min_length=1, description="encoder, any name segmentation-models-pytorch knows")
    encoder_depth: int = Field(5, ge=3, le=5, description="encoder stages, where the architecture allows a choice")
    encoder_weights: str = Field(
        "none",
        min_length=1,
        description="none (random), imagenet (download), bundled (a package) or a file (.safetensors or state dict)",
    )
    norm: Literal["batch", "group", "instance"] = Field(
        "batch", description="group and instance suit small batches and many processes"
    )
    options: Options = Field({}, description="more of the architecture's own options, e.g. decoder_attention_type=scse")

    @property
    def initialisation(self) -> str:
        """`rand`, `img`, `bundled` or `file`: where the encoder's weights come from."""
        return {"none": "rand", "imagenet": "img", "bundled": "bundled"}.get(self.encoder_weights, "file")


class LossConfig(Section):
    """What is minimised."""

    name: Annotated[LossName, BeforeValidator(lambda v: "bce" if v == "ce" else v)] = Field(
        "dice_bce", description="loss; 'ce' means bce, which is categorical where there are several classes"
    )
    dice_weight: float = Field(1.0, ge=0, description="dice_bce: weight of the soft Dice term")
    bce_weight: float = Field(1.0, ge=0, description="dice_bce: weight of the (binary) cross-entropy term")
    focal_gamma: float = Field(2.0, ge=0, le=10, description="focal: how little easy pixels count")
    tversky_alpha: float = Field(0.3, ge=0, le=1, description="tversky, focal_tversky: weight of false positives")
    tversky_beta: float = Field(0.7, ge=0, le=1, description="tversky, focal_tversky: weight of false negatives")
    tversky_gamma: float = Field(4 / 3, ge=1, le=3, description="focal_tversky: the loss is taken to 1/gamma")
    cldice_share: Fraction = Field(0.5, description="cldice: share of soft clDice, the rest is soft Dice")
    cldice_iterations: int = Field(5, ge=1, le=50, description="cldice: half the widest vessel, in pixels")
    class_weights: Weights = Field((), description="one weight for each foreground class; empty: all 1")

    @model_validator(mode="after")
    def _something_to_learn(self) -> "LossConfig":
        if self.dice_weight + self.bce_weight == 0:
            raise ValueError("loss.dice_weight and loss.bce_weight must not both be 0")
        return self


class AugmentConfig(Section):
    """Random changes of the training images, drawn from (seed, epoch, sample): `X_p` is how often, `X` how much."""

    enabled: bool = Field(True, description="augment the training images")
    flip_horizontal: Fraction = Field(0.5, description="probability of a left-right flip")
    flip_vertical: Fraction = Field(0.0, description="probability of an up-down flip")
    rotation_p: Fraction = Field(0.75, description="probability of a rotation")
    rotation: float = Field(15.0, ge=0, le=180, description="largest rotation, degrees")
    scale_p: Fraction = Field(0.75, description="probability of a scaling")
    scale: float = Field(0.15, ge=0, lt=1, description="largest relative change of size")
    stretch_p: Fraction = Field(0.0, description="probability of a change of the aspect ratio")
    stretch: float = Field(0.2, ge=0, lt=1, description="largest relative change of the width, against the height")
    shear_p: Fraction = Field(0.0, description="probability of a shear")
    shear: float = Field(10.0, ge=0, le=60, description="largest shear, degrees")
    elastic_p: Fraction = Field(0.0, description="probability of an elastic deformation")
    elastic: float = Field(0.03, ge=0, le=0.2, description="typical elastic displacement, share of the shorter side")
    brightness_p: Fraction = Field(0.5, description="probability of a shift in brightness")
    brightness: float = Field(0.2, ge=0, le=5, description="largest shift, in standard deviations of the image")
    contrast_p: Fraction = Field(0.5, description="probability of a change of contrast")
    contrast: float = Field(0.2, ge=0, lt=1, description="largest relative change of contrast")
    gamma_p: Fraction = Field(0.5, description="probability of a change of gamma")
    gamma: float = Field(0.2, ge=0, lt=1, description="largest relative change of the exponent")
    gamma_inverted: Fraction = Field(0.0, description="share of the changes of gamma that are made to the negative")
    colour_p: Fraction = Field(0.0, description="probability of a shift of each channel by itself")
    colour: float = Field(0.2, ge=0, le=5, description="largest shift of a channel, in its standard deviations")
    noise_p: Fraction = Field(0.0, description="probability of Gaussian noise")
    noise: float = Field(0.1, ge=0, le=5, description="largest noise, in standard deviations of the image")
    blur_p: Fraction = Field(0.0, description="probability of a Gaussian blur")
    blur: float = Field(1.0, ge=0, le=10, description="largest blur: sigma in pixels")
    coarse_p: Fraction = Field(0.0, description="probability of a loss of resolution")
    coarse: float = Field(0.5, ge=0, lt=1, description="largest share of the resolution that is lost")
    dropout_p: Fraction = Field(0.0, description="probability of coarse dropout: a rectangle set to the image's mean")
    dropout: float = Field(0.25, ge=0, le=1, description="longest side of the rectangle, share of the image's")


class TrainConfig(Section):
    """Optimisation."""

    epochs: int = Field(50, ge=1, le=100_000, description="passes over the training set")
    minutes: float = Field(0.0, ge=0, description="as many epochs as fit into so many minutes here; 0: train.epochs")
    batch_size: int = Field(16, ge=1, le=4096, description="slices or images a batch, over all processes together")
    accumulate: int = Field(1, ge=1, le=1024, description="batches whose gradients make one step")
    empty_share: Fraction = Field(1.0, description="share of the slices without foreground drawn anew for each epoch")
    oversample: int = Field(1, ge=1, le=100, description="how often an epoch shows each slice with foreground")
    patches: int = Field(0, ge=0, le=100_000, description="fit=patch: windows a case and epoch; 0: as they fit")
    foreground: Fraction = Field(0.33, description="fit=patch: share of the windows centred on a pixel of a class")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw, or sgd with Nesterov momentum")
    lr: float = Field(1e-3, gt=0, le=10, description="peak learning rate")
    weight_decay: float = Field(1e-2, ge=0, le=10, description="weight decay; decoupled in AdamW")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd: Nesterov momentum")
    schedule: Literal["cosine", "polynomial", "plateau", "onecycle", "constant"] = Field(
        "cosine", description="learning rate after the warm-up; onecycle has its own"
    )
    warmup_epochs: float = Field(1.0, ge=0, description="linear warm-up")
    poly_power: float = Field(0.9, gt=0, le=10, description="polynomial: exponent")
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="plateau: factor of the learning rate")
    plateau_patience: int = Field(5, ge=1, description="plateau: epochs without a better validation Dice until then")
    clip_norm: float = Field(0.0, ge=0, description="largest gradient norm of a step; 0: not clipped")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="moving average of the weights, evaluated and saved; 0: none")
    patience: int = Field(0, ge=0, description="stop after so many epochs without a better validation Dice; 0: never")
    min_delta: float = Field(0.0, ge=0, le=1, description="gain in validation Dice that counts as better for patience")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if there is one")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, and on a processor that has it where it is faster"
    )
    processes: int = Field(1, ge=1, le=1024, description="processes on this machine, one a GPU; started by torchrun")
    max_restarts: int = Field(3, ge=0, le=100, description="processes > 1: restarts from the last checkpoint")
    resume: str = Field("auto", min_length=1, description="auto: continue an interrupted run; never; or a run ID")


AVERAGED = ("fedavg", "fedprox", "fedbn")


class FederateConfig(Section):
    """Sites that train together; their images stay with them."""

    strategy: Literal["central", "local", "fedavg", "fedprox", "fedbn"] = Field(
        "central",
        description="central: all cases together; local: one site's own; else sites train, weights are averaged",
    )
    sites: Names = Field((), description="sites of the data set to train on; empty: all")
    rounds: int = Field(
        0, ge=0, le=100_000, description="how often weights are averaged; 0: until train.epochs are done"
    )
    local_epochs: int = Field(1, ge=1, le=1000, description="epochs at each site in a round")
    mu: float = Field(0.01, ge=0, le=1000, description="fedprox: pull towards the weights that a round began with")
    quorum: int = Field(0, ge=0, description="fewest sites that make a round; 0: more than half of them")
    deadline: float = Field(0.0, ge=0, description="seconds a site may take for a round; 0: any time")
    first_deadline: float = Field(0.0, ge=0, description="the same for the first round; 0: as federate.deadline")
    optimizer: Literal["keep", "reset"] = Field("keep", description="a site's optimizer state from round to round")

    @property
    def averages(self) -> bool:
        """Whether sites train apart and their weights are averaged."""
        return self.strategy in AVERAGED

    @model_validator(mode="after")
    def _check(self) -> "FederateConfig":
        if len(set(self.sites)) < len(self.sites):
            raise ValueError("sites: a site is named twice")
        if self.strategy == "local" and len(self.sites) != 1:
            raise ValueError("strategy local: name one site in federate.sites")
        return self


class EvaluateConfig(Section):
    """How the test set is measured."""

    threshold: Threshold = Field(
        "auto", description="foreground probability from which a voxel is foreground; auto: by the validation set"
    )
    tta: Literal["auto"] | bool = Field(
        False, description="average the predictions for the image and its three flips; auto: if that helps validation"
    )
    postprocess: Literal["none", "largest_component", "min_area", "auto"] = Field(
        "none",
        description="keep each class's largest component, or drop those below an area; auto: what helps validation",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the network; auto: bf16 on a processor that has it where it is faster"
    )
    tolerance: float = Field(2.0, gt=0, le=100, description="tolerance of the normalised surface Dice, mm or pixels")
    band: float = Field(10.0, gt=0, le=1000, description="pixel-wise metrics: reach around the reference, mm or pixels")
    subgroups: Names = Field(("site", "size"), description="columns to group by; size: tertiles of the reference")
    bootstrap_samples: int = Field(10_000, ge=100, le=1_000_000, description="resamples behind a confidence interval")


class GateConfig(Section):
    """What a model must show before it becomes champion."""

    floors: Floors = Field({}, description="metric=value,...: what the worse confidence bound of each mean must reach")
    min_patients: int = Field(6, ge=1, description="fewest test patients; 6 are the fewest that can show 2.5 %")
    beat_trivial: bool = Field(
        True, description="must be better in Dice than predicting nothing, everything, or the mean training mask"
    )
    metric: MetricName = Field("dice", description="metric that decides")
    rule: Literal["superiority", "non_inferiority"] = Field(
        "superiority", description="better than the champion, or not worse by gate.margin and better in gate.guard"
    )
    alpha: float = Field(0.025, gt=0, lt=0.5, description="one-sided level of the paired test over patients")
    margin: float = Field(0.01, ge=0, description="non_inferiority: largest loss in gate.metric, in its unit")
    guard: MetricName = Field("hd95", description="non_inferiority: metric that must be significantly better")
    subgroup_margin: float = Field(0.05, ge=0, description="largest loss of a subgroup in gate.metric, in its unit")
    subgroup_patients: int = Field(3, ge=1, description="fewest patients of a subgroup, or site, that is looked at")
    site_margin: float = Field(
        0.05, ge=0, description="federations: largest loss of a site in gate.metric against its own model, in its unit"
    )
    lesions: Literal["auto"] | bool = Field(
        "auto", description="whether lesions count; auto: not where the references are tubes, such as vessels"
    )
    min_lesions: int = Field(20, ge=1, description="fewest lesions whose share of missed, or false, ones is judged")
    missed_margin: Fraction = Field(0.05, description="largest rise of the share of reference lesions that are missed")
    false_alarm_margin: Fraction = Field(0.05, description="largest rise of the share of found lesions that are false")
    max_latency_ms: float = Field(0.0, ge=0, description="longest median time for a test case; 0: no limit")
    max_size_mb: float = Field(0.0, ge=0, description="largest file of weights; 0: no limit")
    approval: Literal["auto", "manual"] = Field(
        "auto", description="manual: what passes waits as challenger for `python -m steps.register approve VERSION`"
    )


class RegistryConfig(Section):
    """Where a model is promoted."""

    model_name: str = Field("segpipe", pattern=r"^[A-Za-z0-9][A-Za-z0-9_. -]*$", description="name in the registry")


class CardConfig(Section):
    """What the model card says that no run can know."""

    intended_use: str = Field("", description="what the model is for, and what not")
    limits: str = Field("", description="known limits beside those that the results show")
    data_source: str = Field("", description="where the data comes from, with its licence")
    authors: str = Field("", description="who answers for the model")
    licence: str = Field("", description="licence of the model")
    references: str = Field("", description="publications")


class ServingConfig(Section):
    """What a served model takes, and where `steps.serve` listens."""

    max_pixels: int = Field(1 << 26, ge=1, description="largest image, in pixels or voxels (2^26: 512 x 512 x 256)")
    max_batch: int = Field(64, ge=1, le=10_000, description="most rows of one request")
    max_body_mb: float = Field(256.0, gt=0, description="steps.serve: largest request, 1 MB = 10^6 bytes")
    host: str = Field("127.0.0.1", min_length=1, description="steps.serve: address it listens on")
    port: Port = Field(
        "auto", description="steps.serve: port; auto: 5001, or the next that is free; 0: any that is free"
    )
    poll_seconds: float = Field(10.0, gt=0, description="steps.serve: how often it looks for a new champion")


class PredictConfig(Section):
    """What the entry point `predict` segments, and how."""

    input: str = Field("", description="a folder, a list (.txt, .csv, .tsv), a manifest.json or runs:/ID/dataset")
    output: str = Field("", description="folder for the results (default: predictions/ID under tracking.outputs)")
    model: str = Field("", description="URI of the model (default: models:/NAME@champion of registry.model_name)")
    threshold: Literal["model"] | Annotated[float, Field(gt=0, lt=1)] = Field(
        "model", description="foreground probability from which a voxel is foreground; model: the model's own"
    )
    tta: Literal["model"] | bool = Field(
        "model", description="average the predictions for the image and its three flips; model: as it was measured"
    )
    largest_component: Literal["model"] | bool = Field(
        "model", description="keep only each class's largest component; model: as it was measured"
    )
    min_area: Literal["model"] | Annotated[int, Field(ge=0)] = Field(
        "model", description="drop components of fewer pixels or voxels; model: as it was measured"
    )
    comparisons: bool = Field(True, description="a picture of each case: input, overlay, reference")


class TrackingConfig(Section):
    """Where runs are recorded; the server itself comes from $MLFLOW_TRACKING_URI."""

    enabled: bool = Field(True, description="false (or --no-mlflow): files under tracking.outputs, MLflow untouched")
    experiment: str = Field("segpipe", min_length=1, description="MLflow experiment, unless MLflow has set one")
    run_name: FileName = Field(
        "", description="name of the training run; empty: architecture, encoder, weights and time"
    )
    artifact_every: int = Field(10, ge=1, description="epochs between folders of pictures; each new best has one too")
    system_metrics: bool = Field(False, description="record load of CPU, memory and GPU while training")
    outputs: str = Field("", description="checkpoints, unsent records, runs without MLflow (default: outputs/ here)")


class PlanConfig(Section):
    """The recipe that a chain makes from the data first."""

    auto: bool = Field(
        True, description="pipeline.py: plan from the data what is not given (real data; with a recipe only if asked)"
    )


class DriverConfig(Section):
    """How `pipeline.py` runs the steps."""

    timeout: Timeouts = Field({}, description="step=seconds,...: a slower step is ended; the next start continues it")
    retries: Retries = Field(
        {}, description="step=times,...: starts after a failure that can pass (connection, lock); 1 for steps not named"
    )


class CompareConfig(Section):
    """What the entry point `compare` trains: every combination."""

    archs: Architectures = Field(
        ("attention_unet", "unetplusplus", "fpn", "deeplabv3plus", "manet", "pspnet"),
        min_length=1,
        description="architectures to compare",
    )
    encoders: Names = Field((), description="encoders to compare; empty: model.encoder")
    encoder_weights: Names = Field((), description="initial weights to compare; empty: model.encoder_weights")
    seeds: Seeds = Field((), description="training seeds to compare, on the same split; empty: seed")
    parallel: int = Field(1, ge=1, le=64, description="trainings at a time")


class Config(Section):
    """All sections."""

    data: DataConfig = DataConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    split: SplitConfig = SplitConfig()
    check: CheckConfig = CheckConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    federate: FederateConfig = FederateConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    registry: RegistryConfig = RegistryConfig()
    card: CardConfig = CardConfig()
    serving: ServingConfig = ServingConfig()
    predict: PredictConfig = PredictConfig()
    tracking: TrackingConfig = TrackingConfig()
    plan: PlanConfig = PlanConfig()
    driver: DriverConfig = DriverConfig()
    compare: CompareConfig = CompareConfig()
    seed: int = Field(0, ge=0, lt=2**31, description="seed of every random draw")

    @property
    def epochs(self) -> int:
        """Passes over each training case, in one training or through all rounds of a federation."""
        return self.federate.rounds * self.federate.local_epochs or self.train.epochs

    def narrowed(self, sections: Iterable[str]) -> "Config":
        """The same with no other section than these: to ask for one raises AttributeError."""
        kept = self.model_copy()
        for name in set(Config.model_fields) - set(sections):
            kept.__dict__.pop(name, None)
        return kept
