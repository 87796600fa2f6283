"""Weights and image processors from and to other libraries, and exported models."""
