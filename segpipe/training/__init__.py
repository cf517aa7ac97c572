"""The training loop and all around it, from a data set to a recorded model."""
