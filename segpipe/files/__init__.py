"""Files as such: the project's own code, hashes, inventories, atomic writing. Nothing about images."""
