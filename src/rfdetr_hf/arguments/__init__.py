"""The options of every verb, as dataclasses that need neither PyTorch nor Transformers."""
