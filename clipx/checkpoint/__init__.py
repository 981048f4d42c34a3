"""Saving and finding runs: what a checkpoint holds (`state`) and how it lies on disk (`store`)."""
