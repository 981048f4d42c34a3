"""What teachers said of the pictures and captions of shards, stored once for all runs (MobileCLIP, arXiv 2311.17049).

A store is made by `clipx data teach` (`clipx.prepare.teach`) and holds the teachers' embeddings of K views of each
picture, and of its captions. A view is an augmentation that is a function of (the store's seed, view, sample), so no
pixels are stored: a run with `data.teachers` draws one of the views in each epoch, and makes the same pixels again.

    description.py   the store's description, which a reader needs to know first
    shard_file.py    the file of a shard's embeddings
    views.py         which augmentation a view is, and which one an epoch draws
    probes.py        whether this code augments as the code that taught
    fits.py          whether a run fits a store
    store.py         `open_teachers`, and those of a run
    reader.py        columns of a batch
"""

from clipx.data.teachers.store import Teachers, open_teachers, teachers_of

__all__ = ["Teachers", "open_teachers", "teachers_of"]
