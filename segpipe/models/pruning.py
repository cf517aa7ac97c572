"""Removing the parts of a network that do not contribute to its output, found by a trial run."""

import torch
from torch import Tensor, nn


class Unused(nn.Module):
    """Stands in for a module without part in the answer. Some encoders call a stage more than they return."""

    def forward(self, features: Tensor, *_arguments: object) -> Tensor:
        """The features, unchanged."""
        return features


def drop_unused(network: nn.Module, channels: int, height: int, width: int) -> None:
    """Replace the modules that do not contribute to a forward pass, such as encoder stages beyond the depth in use,
    which would otherwise be stored, counted and break DistributedDataParallel. Unused single parameters are frozen.
    Raises ValueError if the network does not return logits of `height` x `width` for an image of that size, and
    whatever the network raises.
    """
    image = torch.zeros(1, channels, height, width)
    network.eval()
    logits = network(image)
    if logits.shape[2:] != (height, width):
        raise ValueError(f"gives {tuple(logits.shape[2:])} logits for an image of {(height, width)}")
    logits.sum().backward()
    unused = {name for name, p in network.named_parameters() if p.grad is None and p.requires_grad}
    network.zero_grad(set_to_none=True)
    _replace(network, "", unused)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in unused)
    with torch.no_grad():
        if not torch.equal(network(image), logits):
            raise ValueError("parts without a gradient can't be dropped")
    network.train()


def _replace(module: nn.Module, prefix: str, unused: set[str]) -> None:
    for name, child in module.named_children():
        path = f"{prefix}{name}."
        parameters = [path + n for n, _ in child.named_parameters()]
        if parameters and unused.issuperset(parameters):
            setattr(module, name, Unused())
        else:
            _replace(child, path, unused)
