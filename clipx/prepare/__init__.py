"""Making, checking and looking at training data: what `clipx data` does."""
