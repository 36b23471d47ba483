"""Training objectives: the parameters, loss, metrics and pictures of each kind of model."""
