"""Pictures for a person to look at. Names from the data are shown as they are, `$` included."""

import matplotlib

matplotlib.use("agg")
matplotlib.rcParams["text.parse_math"] = False
