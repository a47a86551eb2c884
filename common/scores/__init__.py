"""What is computed of a trained network: scores and pictures."""
