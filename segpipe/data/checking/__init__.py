"""What is wrong with a data set: with its files, and with the set as a whole."""
