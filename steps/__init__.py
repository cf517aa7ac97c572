"""One file per entry point: parse, call the library once, log. What they share is command and terminal."""

import signal


def start_quietly() -> None:
    """Until a command answers signals, one ends the process without a word: Python would show a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
