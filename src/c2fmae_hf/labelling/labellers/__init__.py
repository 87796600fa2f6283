"""Labellers: from images to semantic and instance maps."""
