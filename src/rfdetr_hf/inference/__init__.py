"""From images and folders to detections, pictures and files."""
