"""What a model sees and predicts, as pictures."""
