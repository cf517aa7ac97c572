"""A model with all it needs to answer for a raw volume. Evaluation, serving and prediction call it."""
