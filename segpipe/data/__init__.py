"""From raw files to the data set on disk, and from there to batches. No network is involved."""
