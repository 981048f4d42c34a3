"""Parameter groups, optimizers, learning rate schedules, locked towers and the average of the weights."""
