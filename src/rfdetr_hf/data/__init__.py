"""From files or the Hub to batches."""
