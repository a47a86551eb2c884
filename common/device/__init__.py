"""The machine: devices, processes, cores, memory."""
