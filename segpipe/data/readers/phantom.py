"""The embedded default: simulated patients, written once as NIfTI and read like any real data set."""

from pathlib import Path

from segpipe.config.sections import Config
from segpipe.data.readers.nifti import NiftiReader


class PhantomReader(NiftiReader):
    """Simulates the patients below data.root (default: `data/`) unless they lie there already."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.base = Path(config.data.root or "data").resolve()
        self.patients, self.seed = config.data.patients, config.seed
        self.root = self._simulated()

    def _simulated(self) -> Path:
        from segpipe.data import phantom

        return phantom.simulate(self.base, self.patients, self.seed)
