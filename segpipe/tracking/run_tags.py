"""The names of the tags that segpipe sets on runs, and the figures in those of a model version."""

from collections.abc import Mapping

STEP, KEY, PARTS = "segpipe.step", "segpipe.key", "segpipe.parts"
SIGNAL = "segpipe.signal"  # the name of the signal that ended a run
REASON, FIGURE, BECAUSE = "segpipe.reason", "segpipe.figure", "segpipe.because"
MODEL = "segpipe.model_id"
CONTINUED, RESUMED = "segpipe.continued", "segpipe.resumed"
PASSING = "segpipe.passing"
INPUT = "segpipe.input."
SCRATCH = "segpipe.scratch"
SITE_MODELS = "segpipe.site_models"  # the evaluations of sites' own models that a decision looked at, as JSON
SITE = "segpipe.site"  # the site that a run below a training is about
PAGES = "segpipe.pages"  # what the pages of a run were made from (see orchestration.pages)
PRECISION = "segpipe.precision"  # of the network, in an evaluation


def dice_of(version: Mapping[str, str]) -> tuple[float, float, float]:
    """The test Dice in a version's tags, and its 95 % interval; NaN where it has none."""
    dice, low, high = (float(version.get(f"test_dice{end}", "nan")) for end in ("", "_ci_low", "_ci_high"))
    return dice, low, high
