"""Predictions and truth in, metrics out."""
