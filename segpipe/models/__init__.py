"""Networks, their initial weights and their losses. How one is trained is in training."""
