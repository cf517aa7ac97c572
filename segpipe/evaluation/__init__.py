"""Measuring a model on test cases, judging it by the gate, and presenting it in report and card. No registry."""
