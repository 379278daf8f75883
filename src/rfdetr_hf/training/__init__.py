"""The training loop and its parts, one concept a file."""
