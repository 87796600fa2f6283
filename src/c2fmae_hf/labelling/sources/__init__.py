"""Sources of images to be labelled."""
