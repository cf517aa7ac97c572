"""From decoded files to the channels that a model takes."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from segpipe.data import codecs
from segpipe.data.volume import Spacing
from segpipe.errors import InputError
from segpipe.inference.spec import ModelSpec


def gathered(files: Mapping[str, codecs.Decoded], spec: ModelSpec) -> tuple[NDArray[np.float32], list[str]]:
    """The image C,D,H,W of one file with all channels, or of a file per channel on the first one's grid; and warnings.

    Raises InputError beginning with the name of the file that does not fit the model.
    """
    names = list(files)
    if len(names) > 1:
        image, elsewhere = codecs.stack(files)
        return image, [f"{name}: resampled, it lies on another grid than {names[0]}" for name in elsewhere]
    where, file = names[0], files[names[0]]
    if isinstance(file.geometry, codecs.Grid):
        return file.array, []
    if file.geometry.volume and spec.kind == "picture":
        raise InputError(f"{where}: {codecs.SEVERAL_PAGES}")
    if not file.geometry.volume and spec.kind == "volume":
        raise InputError(f"{where}: a picture; this model takes volumes: NIfTI, or TIFF of several pages")
    wanted = len(spec.channels)
    image = codecs.as_channels(file.array, wanted, where)
    if len(image) == len(file.array):
        return image, []
    return image, [f"{where}: {'colour turned to grey' if wanted == 1 else f'grey repeated {wanted} times'}"]


def unlike(image: NDArray[np.float32], spacing: Spacing | None, spec: ModelSpec) -> list[str]:
    """A warning where a raw image C,D,H,W is unlike those that the model was trained on."""
    told = spec.profile.compare(image, spacing)[1] if spec.profile else ""
    return [told] if told else []
