"""The `c2fmae` command."""
