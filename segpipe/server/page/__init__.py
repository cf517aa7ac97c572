"""A page to try a served model in a browser."""
