"""The training stream: the samples of all shards (`index`), their order (`order`), and their batches (`stream`)."""
