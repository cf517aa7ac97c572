"""One file per entry point: parse, call the library once, log."""
