"""The training stream: where samples lie (`index`), their order (`order`), and how they become batches (`stream`)."""
