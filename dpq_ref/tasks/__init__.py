"""The tasks of the paper: data, model, training, evaluation."""
