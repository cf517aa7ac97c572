"""From raw files to the arrays that training gathers its batches from."""
