"""The run directory and the checkpoints in it."""
