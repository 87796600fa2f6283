"""A page to try a pre-trained model on. Needs `pip install c2fmae-hf[app]`."""
