"""The steps as a chain: keys, reuse, launching, comparing, reproducing, registering. No step's own work."""
