"""Group normalisation (Wu & He 2018, https://arxiv.org/abs/1803.08494) in place of batch normalisation; with groups of
one channel it is instance normalisation (Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022).
"""

from typing import Literal

import torch
from torch import Tensor, nn

MOST_GROUPS = 32
FEWEST_CHANNELS = 4


def groups(channels: int) -> int:
    """The largest divisor of `channels` that is at most 32 and leaves a group at least 4 channels; otherwise 1.

    Groups of one channel would be instance normalisation, which wipes out globally pooled features.
    """
    most = min(MOST_GROUPS, channels // FEWEST_CHANNELS)
    return next((n for n in range(most, 0, -1) if channels % n == 0), 1)


class GroupNorm(nn.GroupNorm):
    """Replaces a batch normalisation by that of `count` groups and takes over its scale and offset, and the activation
    that timm's include. A single value cannot be normalised; it is only scaled and shifted.
    """

    def __init__(self, batch: nn.BatchNorm2d, count: int) -> None:
        super().__init__(count, batch.num_features, eps=batch.eps, affine=batch.affine)
        if batch.affine:
            self.weight, self.bias = batch.weight, batch.bias
        for name, child in batch.named_children():
            self.add_module(name, child)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """Features N,C,H,W to the same shape."""
        if self.num_channels == self.num_groups and input.shape[2:].numel() == 1 and self.affine:
            normalised = torch.addcmul(self.bias[:, None, None], input, self.weight[:, None, None])
        else:
            normalised = super().forward(input)
        for child in self.children():
            normalised = child(normalised)
        return normalised


def replace_batch_norm(module: nn.Module, norm: Literal["group", "instance"]) -> None:
    """Replace every BatchNorm2d inside a module, at any depth. Weight names stay; running statistics are dropped."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            setattr(module, name, GroupNorm(child, channels if norm == "instance" else groups(channels)))
        else:
            replace_batch_norm(child, norm)
