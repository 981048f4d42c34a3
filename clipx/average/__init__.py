"""Averages the weights of models of one architecture, and writes the result as a model."""
