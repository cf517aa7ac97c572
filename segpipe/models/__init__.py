"""Networks, their initial weights and their losses. The training loop is in training."""
