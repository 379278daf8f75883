"""Data sets in many files: written, listed in an index, fetched, and read row by row."""
