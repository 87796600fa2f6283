"""Pre-training with transformers' Trainer."""
