"""What is trained: configuration, modules, image processor."""
