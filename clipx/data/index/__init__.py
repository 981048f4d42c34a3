"""Which shards there are, how many samples each holds and where in it they lie."""
