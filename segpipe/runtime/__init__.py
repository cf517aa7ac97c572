"""What a process needs to know of its machine: devices, the processes of a training, other processes, signals."""
