"""Public weights: files of other frameworks become checkpoints that training starts from."""
