"""Which weights of a network belong to its normalisation layers."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

KINDS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # batch and instance normalisation have the first as base


def names(network: nn.Module) -> frozenset[str]:
    """The names, as in its state dict, of what a network's normalisation layers hold, known by type, not by name: what
    FedBN (Li et al. 2021, https://arxiv.org/abs/2102.07623) keeps at a site.
    """
    layers = ((prefix, layer) for prefix, layer in network.named_modules() if isinstance(layer, KINDS))
    return frozenset(f"{prefix}.{name}" if prefix else name for prefix, layer in layers for name in layer.state_dict())
