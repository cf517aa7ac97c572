"""What a model shows on test cases: measured, judged by the gate, and told in report and card. No registry."""
