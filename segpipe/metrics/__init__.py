"""Formulas on arrays and statistics on tables, in pure numpy and scipy. No reading or writing of files."""
