"""Ranks: process state (`runtime`), collectives, and distributing a model over ranks (`parallelize`)."""
