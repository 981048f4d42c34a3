"""What a fit run does before it trains: its tables as shards, the facts of its columns, and its kept features."""
