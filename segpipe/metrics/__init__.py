"""Formulas on arrays and statistics on tables: pure numpy and scipy. Nothing is read or written."""
