"""A recipe from the data: what a data set is like, and which knobs follow from that. No training, no MLflow."""
