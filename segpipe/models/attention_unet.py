"""Attention U-Net (Oktay et al. 2018, https://arxiv.org/abs/1804.03999) over any encoder of smp.

The gates are the paper's (its equations 1 and 2) with one difference: the gating signal is resampled to the skip's
grid, so that every pixel of the skip has its own coefficient, where the paper computes them on the coarser grid.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class AttentionGate(nn.Module):
    """Additive attention: multiplies a skip by coefficients in 0..1, made of it and of a coarser level's signal."""

    def __init__(self, skip_channels: int, gating_channels: int) -> None:
        super().__init__()
        inner = max(1, skip_channels // 2)
        self.skip = nn.Conv2d(skip_channels, inner, kernel_size=1, bias=False)
        self.gating = nn.Conv2d(gating_channels, inner, kernel_size=1)
        self.psi = nn.Conv2d(inner, 1, kernel_size=1)

    def coefficients(self, skip: Tensor, gating: Tensor) -> Tensor:
        """The attention N,1,H,W in 0..1 for a skip N,C,H,W and a gating signal N,G,h,w of any size."""
        signal = functional.interpolate(self.gating(gating), size=skip.shape[2:], mode="bilinear")
        return torch.sigmoid(self.psi(functional.relu(self.skip(skip) + signal)))

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        """The weighted skip N,C,H,W."""
        return skip * self.coefficients(skip, gating)


class GatedBlock(nn.Module):
    """A decoder block of smp's U-Net with a gate on its skip connection."""

    def __init__(self, block: nn.Module, gate: AttentionGate) -> None:
        super().__init__()
        self.block, self.gate = block, gate

    def forward(self, coarser: Tensor, height: int, width: int, skip_connection: Tensor) -> Tensor:
        """The coarser level N,G,h,w and a skip N,C,height,width to N,K,height,width."""
        decoded: Tensor = self.block(coarser, height, width, self.gate(skip_connection, coarser))
        return decoded


def add_gates(unet: Any, decoder_channels: Sequence[int]) -> None:
    """Put a gate on every skip connection of an `smp.Unet` with these channels in its decoder, deepest level first."""
    from segmentation_models_pytorch.base.initialization import initialize_decoder

    blocks = unet.decoder.blocks
    deepest, *skips = reversed(unet.encoder.out_channels[1:])
    for level, (skip, gating) in enumerate(zip(skips, (deepest, *decoder_channels), strict=False)):
        if skip:  # an encoder that starts at a quarter of the resolution has no channels at a half
            gate = AttentionGate(skip, gating)
            initialize_decoder(gate)
            blocks[level] = GatedBlock(blocks[level], gate)
