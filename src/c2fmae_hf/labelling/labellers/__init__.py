"""Labellers: images to semantic and instance maps."""
