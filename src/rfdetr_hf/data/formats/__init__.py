"""One file a format: how its files are found and read."""
