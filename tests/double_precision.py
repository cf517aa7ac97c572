"""Two ways of computing the same agree in double precision on any processor.

In single precision they differ by roundings that depend on the processor's instructions, and training amplifies them:
by 2000 and more within two epochs of AdamW.
"""

import torch
from torch import Tensor, nn

from segpipe.data.batches import Batch, Batches

AGREE = {"atol": 1e-9, "rtol": 1e-9}  # 2.2e-16, amplified a thousand times more than was ever seen
SINGLE = torch.finfo(torch.float32).eps  # one rounding: the unit of tolerances where nothing amplifies them


class DoubleBatches(Batches):
    """Batches whose images are float64, and are augmented as such."""

    def _move(self, *arguments: object) -> Batch:
        batch = super()._move(*arguments)  # type: ignore[arg-type]
        return batch._replace(images=batch.images.double())


class Double(nn.Module):
    """A network that computes in float64, whatever it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.double())

    def features(self, images: Tensor) -> Tensor:
        return self.network.features(images.double())
