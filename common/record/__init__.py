"""What a run leaves behind: its folder, lines, numbers, checkpoints, report, profile."""
