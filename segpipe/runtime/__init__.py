"""Devices, the processes of a training, other processes of this machine, signals."""
