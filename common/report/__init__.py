"""The page that tells of a run, or compares several: what a record holds, as one HTML file."""
