"""Each prints figures beside a named baseline measured in the same run; nothing is asserted."""
