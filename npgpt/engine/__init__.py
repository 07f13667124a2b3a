"""The mathematics: ops, the choice of kernels, the model and its optimizers."""
