"""Compares an export with the model it was made from, once for everybody who loads it."""
