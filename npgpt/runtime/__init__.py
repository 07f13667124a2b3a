"""Generation: a trained model writes text."""
