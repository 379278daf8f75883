"""Matching and loss terms: model outputs and targets in, numbers out."""
