"""Prediction for many files at a time, and the output folder."""
