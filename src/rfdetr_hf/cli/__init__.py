"""The parts of the `rfdetr-hf` command."""
