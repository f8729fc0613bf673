"""Training: optimizer, state, step, checkpoints, metrics and the loop that puts them together."""
