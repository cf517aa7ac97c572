"""Many files at a time, and the folder of results."""
