"""From rows of a multi-granular dataset to batches for pre-training: splits, samples, crops, masks, validation."""
