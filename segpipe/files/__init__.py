"""Files as such: the project's own code, hashes, inventories, whole-or-nothing writing. Nothing about images."""
