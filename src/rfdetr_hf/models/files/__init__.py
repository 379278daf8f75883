"""Checkpoints of all layouts, read and written."""
