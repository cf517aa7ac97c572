"""One optimizer step, and all that takes part in it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from segpipe.config.sections import Config, TrainConfig
from segpipe.data.batches import Batch
from segpipe.models import architectures, losses
from segpipe.runtime import devices

if TYPE_CHECKING:
    from accelerate import Accelerator


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Finite:
    """Whether a loss is finite, without making a GPU wait for more than the forward pass."""

    def __init__(self, loss: Tensor) -> None:
        self.flag, self.event = torch.isfinite(loss.detach()), None
        if loss.is_cuda:
            self.flag = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(self.flag, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def __bool__(self) -> bool:
        if self.event:
            self.event.synchronize()
        return bool(self.flag)


class Learner:
    """A network with its optimizer, the moving average of its weights, and the accelerator that runs them."""

    def __init__(
        self, network: architectures.SegmentationModel, config: TrainConfig, accelerator: "Accelerator"
    ) -> None:
        network.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stub
        self.network, self.accelerator = network, accelerator
        self.dtype = DTYPES[devices.precision(config)]
        decay = config.ema_decay
        self.average = AveragedModel(network, multi_avg_fn=averaging(decay), use_buffers=True) if decay else None
        self.model, self.optimizer = accelerator.prepare(network, _optimizer(network, config))
        self.pull: tuple[float, list[Tensor]] | None = None

    @property
    def evaluated(self) -> architectures.SegmentationModel:
        """The network that is validated and saved: the moving average where there is one."""
        return cast(architectures.SegmentationModel, self.average.module) if self.average else self.network

    def forward(self, model: nn.Module, batch: Batch, config: Config) -> tuple[Tensor, Tensor]:
        """The loss of all processes' parts together, and this part's logits."""
        with torch.autocast(self.accelerator.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = model(batch.images.contiguous(memory_format=torch.channels_last))
        return losses.loss(logits, batch.labels, config.loss), logits

    def step(self, config: TrainConfig, rate: float) -> None:
        """Move the weights by the accumulated gradients and, where there is a `pull` of mu towards other weights, by
        mu times the distance: the gradient of FedProx's term, mu / 2 times its square (Li et al. 2020).
        """
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        if self.pull:
            self._add_pull(*self.pull)
        if config.clip_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update_parameters(self.network)

    def _add_pull(self, mu: float, towards: list[Tensor]) -> None:
        scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler else 1.0
        with torch.no_grad():
            for weights, anchor in zip(self.network.parameters(), towards, strict=True):
                if weights.grad is not None:
                    weights.grad.add_(weights - anchor, alpha=mu * scale)

    def state(self) -> dict[str, Any]:
        """Everything that training changes, for a checkpoint."""
        scaler = self.accelerator.scaler
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "scaler": scaler.state_dict() if scaler else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.network.load_state_dict(state["network"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.restore_optimizer(state)

    def restore_optimizer(self, state: dict[str, Any]) -> None:
        """Continue with the optimizer of what `state` gave, and with the factor that losses are scaled by."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def averaging(decay: float) -> Callable[..., None]:
    """Exponential moving average whose decay grows to `decay` as min(decay, (1 + n) / (10 + n)), so that the first
    steps are soon forgotten (the rule of TensorFlow's ExponentialMovingAverage).
    """

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        n = int(count)
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))
        else:
            torch._foreach_copy_(averaged, current)

    return update


def _optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    weights, rate, decay, momentum = network.parameters(), config.lr, config.weight_decay, config.momentum
    if config.optimizer == "adamw":
        return torch.optim.AdamW(weights, rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(weights, rate, momentum, weight_decay=decay, nesterov=momentum > 0, fused=True)
