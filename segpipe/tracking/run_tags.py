"""The names of the tags that segpipe sets on runs."""

STEP, KEY, PARTS = "segpipe.step", "segpipe.key", "segpipe.parts"
SIGNAL = "segpipe.signal"  # the name of the signal that ended a run
REASON, FIGURE, BECAUSE = "segpipe.reason", "segpipe.figure", "segpipe.because"
MODEL = "segpipe.model_id"
CONTINUED, RESUMED = "segpipe.continued", "segpipe.resumed"
PASSING = "segpipe.passing"
INPUT = "segpipe.input."
SCRATCH = "segpipe.scratch"
