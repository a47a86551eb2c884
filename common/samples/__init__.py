"""The embedded data sets, drawn on the spot."""
