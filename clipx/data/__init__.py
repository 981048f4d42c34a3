"""The training stream: where samples lie (`index`), the order they are read in (`plan`), and how they become batches."""
