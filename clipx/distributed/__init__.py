"""Ranks: process state (`runtime`), collectives, and how a model is spread over ranks (`parallelize`)."""
