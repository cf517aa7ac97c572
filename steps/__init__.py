"""One file per entry point: parse, call the library once, log."""

import signal
import sys

COMMANDS = ("-m", "pipeline.py")  # what sys.argv begins with while one of the project's commands starts

if sys.argv[0].rpartition("/")[2] in COMMANDS and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `signals.install`: Python would show a traceback
