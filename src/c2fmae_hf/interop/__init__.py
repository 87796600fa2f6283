"""Convert weights and image processors from and to other libraries, and export models."""
