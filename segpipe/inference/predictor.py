"""A trained model with all it needs to segment a raw volume: what evaluation measures and serving answers with."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from segpipe.data import components, context, transform
from segpipe.data.transform import Fit
from segpipe.data.volume import Spacing
from segpipe.data.windows import Windows
from segpipe.errors import InputError, one_line
from segpipe.inference.spec import SPEC, WEIGHTS, Labelling, ModelSpec
from segpipe.models import architectures
from segpipe.runtime import devices

SLICES_PER_FORWARD = 16
LARGEST = 1e15
OVERLAP, CROP_OVERLAP = 0.25, 0.5  # of windows; the second is that of models from earlier versions
FLIPS = ((), (3,), (2,), (2, 3))
Axes = tuple[int, ...]
Slices = NDArray[np.float32]
Through = Callable[[Callable[[Slices], Slices], Slices], Slices]  # work and its argument to its result


class Segmentation(NamedTuple):
    """On the volume's own grid D,H,W: labels uint8, the foreground's probability float32 and, where flips were
    averaged, its population variance over them float32.
    """

    mask: NDArray[np.uint8]
    foreground: Slices
    variance: Slices | None


class Prepared(NamedTuple):
    """A normalised image C,D,h,w float32, resampled if the model asks for that, each channel's smallest value C, how it
    is fitted to the network, and the height and width of its own grid.
    """

    image: Slices
    lowest: Slices
    lying: Fit | Windows
    native: tuple[int, int]


class Predictor:
    """Segments raw volumes. Holds no state between calls: safe to use from several threads. `through` runs the network
    in the thread that is best for it, by default the caller's. A model that was measured in bf16 runs in fp32 on a
    processor without it.
    """

    def __init__(
        self, spec: ModelSpec, model: architectures.SegmentationModel, device: torch.device | str = "cpu"
    ) -> None:
        self.spec, self.device = spec, torch.device(device)
        self.half = spec.precision == "bf16" and (self.device.type != "cpu" or devices.processor_has_bf16())
        self.through: Through = lambda work, slices: work(slices)
        self.model = model.eval()
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stub

    def save(self, folder: Path) -> None:
        """Write spec.json and weights.safetensors into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous().cpu() for name, value in self.model.state_dict().items()}
        safetensors.torch.save_file(state, folder / WEIGHTS)
        (folder / SPEC).write_text(json.dumps(self.spec.model_dump(mode="json"), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Self:
        """Read what `save` wrote; nothing is unpickled or downloaded.

        Raises InputError where it is missing, damaged or of another format.
        """
        spec = ModelSpec.read(folder)
        try:
            sizes = len(spec.channels) * spec.preprocess.planes, len(spec.classes)
            model = architectures.build(spec.model, *sizes, seed=0, pretrained=False)
            model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(f"{folder}: not a whole segpipe model ({one_line(error)})") from None
        return cls(spec, model, device)

    def with_precision(self, precision: str) -> Self:
        """The same network in another precision."""
        return type(self)(self.spec.model_copy(update={"precision": precision}), self.model, self.device)

    def prepare(self, image: Slices, spacing: Spacing | None = None) -> Prepared:
        """A raw image C,D,H,W with its spacing, checked, normalised and resampled.

        Raises InputError where the number of channels differs from the model's, voxels are not finite or too large to
        be squared and summed, or the model needs a spacing and there is none.
        """
        if len(image) != len(self.spec.channels):
            raise InputError(f"{len(image)} channels, the model takes {len(self.spec.channels)}: {self.spec.channels}")
        low, high = float(image.min()), float(image.max())
        if not np.isfinite(low + high):
            raise InputError("NaN or infinite voxels")
        if max(-low, high) > LARGEST:
            raise InputError(f"intensities from {low:.3g} to {high:.3g}, beyond {LARGEST:.0e}; rescale them")
        native: tuple[int, int] = image.shape[2:]
        plane = transform.working_plane(native, spacing, self.spec.preprocess)
        return self.fit(transform.resampled(transform.normalise(image, self.spec.preprocess), plane), native)

    def fit(self, normalised: Slices, native: tuple[int, int] | None = None) -> Prepared:
        """A normalised and resampled image C,D,h,w, as a data set holds it, made ready for the network; `native` is the
        plane that its answer is for, by default its own.
        """
        config, (height, width) = self.spec.preprocess, normalised.shape[2:]
        large = config.fit == "crop" and (height > config.size[0] or width > config.size[1])
        if config.fit == "patch":
            lying: Fit | Windows = Windows((height, width), config.size, OVERLAP, mirror=True)
        elif large:
            lying = Windows((height, width), config.size, CROP_OVERLAP)
        else:
            lying = Fit((height, width), config)
        return Prepared(normalised, normalised.min(axis=(1, 2, 3)), lying, native or (height, width))

    def segment(
        self, image: Slices, threshold: float, tta: bool = False, spacing: Spacing | None = None
    ) -> Segmentation:
        """`prepare` and `label` a raw image C,D,H,W. Raises InputError as `prepare` does."""
        return self.label(self.prepare(image, spacing), threshold, tta)

    def label(self, prepared: Prepared, threshold: float, tta: bool = False) -> Segmentation:
        """Foreground where its classes' probabilities reach `threshold` together, and there the most probable class.

        With `tta` the probabilities are the mean over the image and its three flips in the network's plane.
        """
        shape = (prepared.image.shape[1], *prepared.native)
        mask, foreground = np.empty(shape, dtype=np.uint8), np.empty(shape, dtype=np.float32)
        variance = np.empty(shape, dtype=np.float32) if tta else None
        for planes in _groups(shape[0]):
            probabilities, foreground[planes], squares = self._mean(prepared, planes, FLIPS if tta else FLIPS[:1])
            found = foreground[planes] >= threshold
            mask[planes] = found if len(probabilities) == 1 else np.where(found, probabilities.argmax(axis=0) + 1, 0)
            if variance is not None:
                variance[planes] = squares / len(FLIPS)
        return Segmentation(mask, foreground, variance)

    def answer(self, prepared: Prepared, labelling: Labelling) -> Segmentation:
        """`label`, without the components that are dropped."""
        found = self.label(prepared, labelling.threshold, labelling.tta)
        return found._replace(mask=components.clean(found.mask, labelling.largest_component, labelling.min_area))

    def _mean(self, prepared: Prepared, planes: slice, flips: tuple[Axes, ...]) -> tuple[Slices, Slices, Slices]:
        """Over the flips: mean probabilities K,d,H,W, mean foreground d,H,W and the sum of its squared distances from
        that mean (Welford 1962).
        """
        probabilities = self._probabilities(prepared, planes, flips[0])
        foreground = _foreground(probabilities)
        squares = np.zeros_like(foreground)
        for count, flip in enumerate(flips[1:], start=2):
            found = self._probabilities(prepared, planes, flip)
            probabilities += (found - probabilities) / count
            once = _foreground(found)
            distance = once - foreground
            foreground += distance / count
            squares += distance * (once - foreground)
        return probabilities, foreground, squares

    def _probabilities(self, prepared: Prepared, planes: slice, flip: Axes) -> Slices:
        """The foreground classes' probabilities K,d,H,W of some planes, on their own grid."""
        flipped = (np.flip(self.forward(np.flip(s, flip)), flip) for s in self._slices(prepared, planes))
        if isinstance(prepared.lying, Windows):
            found = prepared.lying.blend(flipped, len(self.spec.classes), prepared.image[0, planes].shape[0])
            return transform.resampled(found, prepared.native)
        return prepared.lying.back(next(flipped))

    def _slices(self, prepared: Prepared, planes: slice) -> Iterator[Slices]:
        """Some planes as the network sees them, in batches N,C,h,w that fit in one forward pass."""
        config = self.spec.preprocess
        image, lowest = context.stacked(prepared.image, planes, config.context), np.tile(prepared.lowest, config.planes)
        if isinstance(prepared.lying, Windows):
            return prepared.lying.cut(image, lowest, SLICES_PER_FORWARD)
        return iter([prepared.lying.image(image, lowest)])

    def forward(self, slices: Slices) -> Slices:
        """Slices as the network sees them, N,C,h,w, to the foreground classes' probabilities N,K,h,w."""
        return self.through(self._forward, slices)

    @torch.inference_mode()
    def _forward(self, slices: Slices) -> Slices:
        parts = []
        for first in range(0, len(slices), SLICES_PER_FORWARD):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                logits = self.model(self._batch(slices[first : first + SLICES_PER_FORWARD])).float()
            several = logits.shape[1] > 1
            parts.append((logits.softmax(dim=1)[:, 1:] if several else logits.sigmoid()).cpu().numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def embedding(self, prepared: Prepared) -> NDArray[np.float32]:
        """The features E of the encoder's last stage, averaged over the image or its windows."""
        parts = [
            self.model.features(self._batch(slices)).float().mean(dim=(2, 3)).cpu()
            for planes in _groups(prepared.image.shape[1])
            for slices in self._slices(prepared, planes)
        ]
        mean: NDArray[np.float32] = torch.cat(parts).mean(dim=0).numpy()
        return mean

    def _batch(self, slices: Slices) -> torch.Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(slices)).to(self.device)
        return batch.contiguous(memory_format=torch.channels_last)


def _groups(depth: int) -> Iterator[slice]:
    return (slice(first, min(first + SLICES_PER_FORWARD, depth)) for first in range(0, depth, SLICES_PER_FORWARD))


def _foreground(probabilities: Slices) -> Slices:
    """K,d,H,W to d,H,W: the classes together, at most 1."""
    foreground: Slices = np.minimum(probabilities.sum(axis=0), np.float32(1))
    return foreground
