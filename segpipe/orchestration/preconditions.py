"""What a config asks for that can't be had: told before the first step. Nothing here needs torch or a network."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from segpipe.config.sections import Config
from segpipe.errors import InputError
from segpipe.models import encoders
from segpipe.runtime import devices

if TYPE_CHECKING:
    from segpipe.orchestration.chain import Choice
    from segpipe.orchestration.plan import Asked

TRAIN, ON_DEVICE = "train", ("train", "evaluate", "predict")
WITHOUT_TRAINING = ("preprocess", "evaluate", "register")


def check(command: str, config: Config) -> None:
    """Raise InputError for an encoder or a device that a command needs in this process."""
    if command == TRAIN:
        encoders.check(config.model)
        _check_federation(config)
    if command in ON_DEVICE:
        devices.check(config.train, training=command == TRAIN)


def check_trainings(configs: Iterable[Config], asked: "Asked") -> None:
    """Raise InputError for what one of the trainings of a chain, or a comparison, can't have."""
    if TRAIN in asked.names:
        for config in configs:
            encoders.check(config.model)
            _check_federation(config)


def _check_federation(config: Config) -> None:
    """Raise InputError for knobs of train that sites whose weights are averaged can't follow."""
    if not config.federate.averages:
        return
    told, train = f"federate.strategy={config.federate.strategy}", config.train
    if train.minutes:
        raise InputError(f"{told}: train.minutes measures one training; give federate.rounds instead")
    if train.processes > 1:
        raise InputError(f"{told}: train.processes={train.processes}, but a site trains in one process; give 1")
    if train.schedule == "plateau":
        raise InputError(f"{told}: train.schedule=plateau waits for every epoch's validation; give cosine or another")


def check_device(config: Config, coming: "Callable[[], Iterable[tuple[str, Choice]]]") -> None:
    """Raise InputError for a device that a chain, or a comparison, needs on this machine: what is reused needs none.

    `coming` finds out what will become of its steps or models; it is asked only where the device is not there.
    """
    try:
        devices.check(config.train, training=True)
    except InputError:
        to_run = {name for name, choice in coming() if choice.run is None}
        training = bool(to_run.difference(WITHOUT_TRAINING))
        if training or "evaluate" in to_run:
            devices.check(config.train, training=training)
