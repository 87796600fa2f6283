"""Records of runs, the model card they give, and a saved model as a repository on the Hub."""
