"""What a command remembers while it runs: made once, passed on, gone with the process."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.orchestration.keys import Keys
from segpipe.orchestration.screen import Screen
from segpipe.runtime.signals import Guard, Signals
from segpipe.tracking import mlflow_sentences
from segpipe.tracking.connection import Store

if TYPE_CHECKING:
    from segpipe.orchestration.step_log import Log


class Session:
    """Who watches, the tracking store, what asks the process to stop, and the keys of its steps."""

    def __init__(self, screen: Screen, signals: Signals | None = None) -> None:
        self.screen, self.signals = screen, signals or Signals(mlflow_sentences.is_transaction)
        self.store = Store()
        self.guard, self.keys = Guard(self.signals), Keys(screen)
        self.submitting = threading.Lock()  # MLflow's active run belongs to one hand-over to a backend at a time
        self.claimed: dict[Path, int] = {}  # folders of checkpoints, each with the descriptor of its locked file
        self.log: Log | None = None  # that of the step which is at work in this process

    @property
    def say(self) -> Callable[[str], None]:
        """Tell a line."""
        return self.screen.say
