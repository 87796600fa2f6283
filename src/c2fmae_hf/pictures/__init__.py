"""Pictures of predictions, masks, attention and features."""
