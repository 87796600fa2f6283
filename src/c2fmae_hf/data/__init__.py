"""Rows of a multi-granular dataset as batches for pre-training: splits, samples, crops, masks, validation."""
