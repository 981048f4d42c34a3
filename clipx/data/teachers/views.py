"""Which augmentation a view is, and which one an epoch draws: functions of counters, equal when teaching and training.

The seed of a view is a function of (the store's seed, view, name of the sample): of nothing that a run decides, so a
run may read some of the shards that were taught, or mix them with others that were.
"""

from hashlib import blake2b

from clipx import counter_random
from clipx.counter_random import Stream
from clipx.data.sample_refs import SampleName, SampleRef
from clipx.data.samples import View
from clipx.data.teachers.description import Description
from clipx.data.teachers.names import StoredShards


def name_hash(*names: str) -> int:
    """63 bits of names, which hold no NUL."""
    text = "\0".join(names).encode("utf-8", "backslashreplace")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


def view_seed(seed: int, view: int, *, shard: str, key: str) -> int:
    """The seed of a view's augmentation, 63 bits.

    Args:
        seed: the store's.
        view: from 0 on.
        shard: the name of the sample's shard in the store.
        key: the sample's key there.
    """
    return counter_random.key(seed, Stream.TAUGHT_VIEW, view, name_hash(shard, key))


def drawn_view(seed: int, *, epoch: int, sample_id: int, views: int) -> int:
    """The view that a sample has in an epoch: in every `views` epochs each once, from one that is drawn.

    Args:
        seed: the run's.
        epoch: of the sample's source.
        sample_id: of the run.
        views: K.
    """
    turn, place = divmod(epoch, views)
    return (counter_random.key(seed, Stream.DRAWN_VIEW, turn, sample_id) + place) % views


class DrawnViews:
    """Draws for a run among the views of a store, as `clipx.data.samples.Views`.

    Args:
        description: of the store.
        seed: the run's.
    """

    def __init__(self, description: Description, *, seed: int) -> None:
        self._shards = StoredShards([shard.name for shard in description.shards])
        self._views, self._view_seed, self._seed = description.views, description.seed, seed

    def drawn(self, ref: SampleRef, name: SampleName) -> View:
        """See `clipx.data.samples.Views`."""
        view = drawn_view(self._seed, epoch=ref.epoch, sample_id=ref.sample_id, views=self._views)
        shard = self._shards.names[self._shards.number(name.shard)]
        return View(view, view_seed(self._view_seed, view, shard=shard, key=name.key))
