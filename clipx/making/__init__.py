"""Making shards of rows: in parallel, equal bytes for equal input, and so that a second start goes on."""
