"""Checking, repairing and looking at training data: what `clipx data` does beside making it."""
