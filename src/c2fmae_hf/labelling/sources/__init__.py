"""Sources of images to label."""
