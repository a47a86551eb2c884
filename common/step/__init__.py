"""One training step: precision, optimizer, rate, losses, batch norm over processes, compiling."""
