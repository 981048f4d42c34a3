"""Which parameters decay, the optimizer, and the learning rate as a function of the step."""
