"""Saving and finding the state of runs.

store        the checkpoints of a run; `state` is the content of state.json, `manifest` the checksums of the files
tensors      weights, optimizer and averages; `torch_files` has torch's files in a folder or an object store, and
             `torch_metadata` reads their list without running what it names
background   a save beside the training, from a `host_copy` of the state
"""
