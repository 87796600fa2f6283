"""Helpers for files, COCO annotations and optional packages."""
