"""A trained model with all it needs to segment a raw volume: what evaluation measures and serving answers with."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError

from segpipe import models
from segpipe.config import ModelConfig, PreprocessConfig, Section
from segpipe.data import transform
from segpipe.errors import InputError, one_line

FORMAT = 1
SPEC, WEIGHTS = "spec.json", "weights.safetensors"
SLICES_PER_FORWARD = 16
Slices = NDArray[np.float32]


class ModelSpec(Section):
    """How to build the network, what to feed it and how to read its answer."""

    format: int = FORMAT
    model: ModelConfig
    preprocess: PreprocessConfig
    reader: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    threshold: float = 0.5

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What `Predictor.save` wrote about the model. Raises InputError where it is damaged or of another format."""
        try:
            values = json.loads((folder / SPEC).read_text(encoding="utf-8"))
            if values.get("format") != FORMAT:
                raise InputError(f"{folder / SPEC}: format {values.get('format')}, this version reads {FORMAT}")
            return cls.model_validate(values)
        except (OSError, json.JSONDecodeError, ValidationError) as error:
            raise InputError(f"{folder}: not a whole segpipe model ({one_line(error)})") from None


class Segmentation(NamedTuple):
    """Labels D,H,W uint8 and foreground probabilities D,H,W float32, on the volume's own grid."""

    mask: NDArray[np.uint8]
    foreground: NDArray[np.float32]


class Predictor:
    """Segments raw volumes. Holds no state between calls: safe to use from several threads."""

    def __init__(self, spec: ModelSpec, model: models.SegmentationModel, device: torch.device | str = "cpu") -> None:
        self.spec, self.device = spec, torch.device(device)
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
            model = models.build(spec.model, len(spec.channels), len(spec.classes), seed=0, pretrained=False)
            model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(f"{folder}: not a whole segpipe model ({one_line(error)})") from None
        return cls(spec, model, device)

    def probabilities(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """A raw image C,D,H,W to the foreground classes' probabilities K,D,H,W on its own grid."""
        fit = transform.Fit(image.shape[2:], self.spec.preprocess)
        return fit.back(self.forward(fit.image(transform.normalise(image, self.spec.preprocess))))

    @torch.inference_mode()
    def forward(self, slices: Slices) -> Slices:
        """Slices as the network sees them, N,C,h,w, to the foreground classes' probabilities N,K,h,w."""
        parts = []
        for batch in self._batches(slices):
            logits = self.model(batch).float()
            several = logits.shape[1] > 1
            parts.append((logits.softmax(dim=1)[:, 1:] if several else logits.sigmoid()).cpu().numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def embedding(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the encoder's last stage says of a raw image C,D,H,W: its features, averaged over the image."""
        fit = transform.Fit(image.shape[2:], self.spec.preprocess)
        slices = fit.image(transform.normalise(image, self.spec.preprocess))
        parts = [self.model.features(batch).float().mean(dim=(2, 3)).cpu() for batch in self._batches(slices)]
        mean: NDArray[np.float32] = torch.cat(parts).mean(dim=0).numpy()
        return mean

    def _batches(self, slices: Slices) -> Iterator[torch.Tensor]:
        for first in range(0, len(slices), SLICES_PER_FORWARD):
            batch = torch.from_numpy(slices[first : first + SLICES_PER_FORWARD]).to(self.device)
            yield batch.contiguous(memory_format=torch.channels_last)

    def segment(self, image: NDArray[np.float32], threshold: float) -> Segmentation:
        """Label a raw image C,D,H,W: foreground where its classes' probabilities reach `threshold` together, and there
        the most probable class. Raises InputError where the number of channels differs or voxels are not finite.
        """
        if len(image) != len(self.spec.channels):
            raise InputError(f"{len(image)} channels, the model takes {len(self.spec.channels)}: {self.spec.channels}")
        if not np.isfinite(image).all():
            raise InputError("NaN or infinite voxels")
        probabilities = self.probabilities(image)
        foreground = np.minimum(probabilities.sum(axis=0), 1)
        labels = probabilities.argmax(axis=0).astype(np.uint8) + np.uint8(1)
        return Segmentation(np.where(foreground >= threshold, labels, np.uint8(0)), foreground)
