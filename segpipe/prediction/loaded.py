"""A model in Python: `segpipe.load` and what it answers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from segpipe.data import codecs, components
from segpipe.data.codecs import Decoded
from segpipe.data.volume import Spacing, volume_ml
from segpipe.errors import InputError
from segpipe.inference.input_assembly import gathered, unlike
from segpipe.inference.predictor import Predictor
from segpipe.inference.spec import SPEC, Labelling, ModelSpec
from segpipe.prediction import comparisons
from segpipe.recording import logged_models
from segpipe.registry import champions
from segpipe.tracking import artifacts, connection, run_tags, runs

RUN_ID = re.compile(r"[0-9a-f]{32}")
WITHIN = (".", artifacts.WEIGHTS, "final_model/weights")  # where a folder may hold a model's weights
PLANE, COLOURED, STACK, CHANNELS = 2, 3, 3, 4  # numbers of axes

File = str | Path | bytes
Image = File | NDArray[np.generic] | Mapping[str, File]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model found in an image: `mask` uint8 with 0 for background and 1..K for the classes, and `probabilities`
    of the foreground float32, both H,W of a picture or D,H,W of a volume (from inferior to superior, posterior to
    anterior, right to left, as all arrays of segpipe). `mm2` is the area in a picture with a spacing, `ml` the volume
    in a volume with one, by class as well; `lesions` counts components.
    """

    mask: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    classes: tuple[str, ...]
    voxels: dict[str, int]
    mm2: float | None
    ml: float | None
    lesions: int
    warnings: tuple[str, ...]
    _first: Decoded
    _shown: NDArray[np.float32]

    def save(self, path: str | Path) -> Path:
        """Write the mask in the form of the image's file: a PNG, a NIfTI on the same grid, or a TIFF of as many pages.

        Raises InputError for another suffix than that.
        """
        target, geometry = Path(path), self._first.geometry
        if not target.name.lower().endswith(geometry.suffix):
            raise InputError(f"{target}: the mask is written as {geometry.suffix}; give a name with that suffix")
        if not geometry.volume and self.mask.ndim == STACK:
            raise InputError(f"{target}: an array has no geometry of a file; write the mask with numpy or nibabel")
        target.write_bytes(codecs.encode_mask(self._whole, self._first, len(self.classes)))
        return target

    @property
    def _whole(self) -> NDArray[np.uint8]:
        return self.mask if self.mask.ndim == STACK else self.mask[None]

    def _repr_png_(self) -> bytes:
        """A picture for a notebook: the image, and what was found in it."""
        amount = self.ml if self.ml is not None else self.mm2
        unit = "ml" if self.ml is not None else "mm2"
        found = f"{sum(self.voxels.values())} px" if amount is None else f"{amount:.1f} {unit}"
        return comparisons.draw(self._shown, self._whole, None, "", found, "", self.mask.ndim == STACK, self.classes)


class Model:
    """A model that is loaded, ready to predict. Safe to use from several threads."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    @property
    def spec(self) -> ModelSpec:
        """Channels, classes, threshold and all else that describes the model."""
        return self._predictor.spec

    @overload
    def predict(self, image: Image, spacing: Sequence[float] | None = None, **asked: object) -> Prediction: ...
    @overload
    def predict(
        self, image: list[Image] | tuple[Image, ...], spacing: Sequence[float] | None = None, **asked: object
    ) -> list[Prediction]: ...
    def predict(
        self, image: Image | list[Image] | tuple[Image, ...], spacing: Sequence[float] | None = None, **asked: object
    ) -> Prediction | list[Prediction]:
        """Segment an image, or each of a list.

        An image is a path, a file's bytes, a mapping of channel to either for a model of several files, or an array:
        H,W or H,W,3 for pictures, D,H,W or C,D,H,W for volumes. `spacing` is mm along the image's axes, for arrays and
        files that have none. `threshold`, `tta`, `largest_component` and `min_area` are the model's own unless asked
        otherwise. Raises InputError for what is unreadable or does not fit the model.
        """
        if isinstance(image, list | tuple):
            return [self._predict(one, spacing, asked) for one in image]
        return self._predict(image, spacing, asked)

    def _predict(self, image: Image, spacing: Sequence[float] | None, asked: Mapping[str, object]) -> Prediction:
        unknown = sorted(set(asked) - set(Labelling._fields))
        if unknown:
            raise InputError(f"{unknown[0]}: no such option; there are {', '.join(Labelling._fields)}")
        labelling = self.spec.labelling._replace(**asked)  # type: ignore[arg-type]  # checked where it is used
        first, whole, warnings = self._read(image)
        steps = first.spacing or _three(spacing)
        found = self._predictor.answer(self._predictor.prepare(whole, steps), labelling)
        flat, mask = self.spec.kind == "picture" and len(found.mask) == 1, found.mask
        voxels = {name: int(np.count_nonzero(mask == k)) for k, name in enumerate(self.spec.classes, start=1)}
        total = sum(voxels.values())
        return Prediction(
            mask=mask[0] if flat else mask,
            probabilities=found.foreground[0] if flat else found.foreground,
            classes=self.spec.classes,
            voxels=voxels,
            mm2=total * steps[1] * steps[2] if flat and steps else None,
            ml=None if flat else volume_ml(total, steps),
            lesions=components.count(mask),
            warnings=(*warnings, *unlike(whole, steps, self.spec), *labelling.less_than(self.spec.labelling)),
            _first=first,
            _shown=whole,
        )

    def _read(self, image: Image) -> tuple[Decoded, NDArray[np.float32], list[str]]:
        """The file that gives the geometry, the image C,D,H,W, and warnings."""
        if isinstance(image, np.ndarray):
            decoded = Decoded(_four_axes(image, self.spec), None)
            if self.spec.kind == "picture":
                return decoded, *gathered({"array": decoded}, self.spec)
            if len(decoded.array) != len(self.spec.channels):
                raise InputError(f"array of shape {image.shape}: the model takes {len(self.spec.channels)} channels")
            return decoded, decoded.array, []
        files = image if isinstance(image, Mapping) else {"image": image}
        whole = len(files) == 1 or self.spec.kind == "picture"
        names = tuple(files) if whole else self.spec.channels
        if {*names} != {*files} or (len(files) > 1 and whole):
            raise InputError(f"{', '.join(files)}: the model takes {', '.join(self.spec.channels)}, or one file of all")
        decoded_files = {name: _decoded(files[name], name) for name in names}
        return decoded_files[names[0]], *gathered(decoded_files, self.spec)


def _decoded(file: File, name: str) -> Decoded:
    if isinstance(file, bytes):
        return codecs.decode(file, name)
    try:
        return codecs.decode(Path(file).read_bytes(), str(file))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None


def _four_axes(array: NDArray[np.generic], spec: ModelSpec) -> NDArray[np.float32]:
    """An array as C,D,H,W float32."""
    values = np.asarray(array, dtype=np.float32)
    if spec.kind == "volume":
        if values.ndim == STACK:
            return values[None]
        if values.ndim == CHANNELS:
            return values
        raise InputError(f"array of shape {array.shape}: expected D,H,W or C,D,H,W")
    if values.ndim == PLANE:
        return values[None, None]
    if values.ndim == COLOURED and values.shape[2] == COLOURED:
        return np.ascontiguousarray(values.transpose(2, 0, 1)[:, None])
    raise InputError(f"array of shape {array.shape}: expected H,W or H,W,3")


def _three(spacing: Sequence[float] | None) -> Spacing | None:
    if spacing is None:
        return None
    if len(spacing) not in (PLANE, STACK) or min(spacing) <= 0:
        raise InputError(f"spacing {tuple(spacing)}: expected height, width or depth, height, width in mm, above 0")
    depth, height, width = (1.0, *map(float, spacing))[-STACK:]
    return depth, height, width


def load(model: str | Path, device: str = "cpu") -> Model:
    """Load a model: a URI (models:/NAME@champion, models:/NAME/VERSION), the ID of a run of train or evaluate, or a
    folder that holds one. A URI and a run are looked for in $MLFLOW_TRACKING_URI, else in `mlflow.db` here.

    Raises InputError where there is no such model, StoreError where the store does not answer.
    """
    return Model(Predictor.load(_folder(model), device))


def _folder(model: str | Path) -> Path:
    path = Path(model)
    if path.is_dir():
        found = next((path / inside for inside in WITHIN if (path / inside / SPEC).is_file()), None)
        if found is None:
            raise InputError(f"{path}: no model of segpipe in this folder")
        return found
    name = str(model)
    connection.Store().reach()
    if RUN_ID.fullmatch(name):
        return logged_models.folder(f"models:/{runs.tag_of(name, run_tags.MODEL)}")
    if not name.startswith("models:/"):
        raise InputError(f"{name}: no folder, no run ID and no models:/NAME@champion")
    return logged_models.folder(champions.pinned(name))
