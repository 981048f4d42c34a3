"""The training stream: where samples lie (`index`), their order (`plan`), and how they become batches (`stream`)."""
