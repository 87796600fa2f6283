"""Records of runs, model cards, and publishing on the Hub."""
