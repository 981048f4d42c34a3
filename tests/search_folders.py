"""A folder of embeddings of a few pictures with captions, by a stored model, for tests of searching."""

from pathlib import Path
from typing import NamedTuple

from stored_averages import stored
from tiny_clip import encoded, picture

from clipx.pretrained import Pretrained, load
from clipx.use.embed import EmbedOptions, embed
from clipx.use.embeddings import Embeddings, open_embeddings

COUNT = 11
NASTY = "<script>alert(1)</script> \x1b[2J & co"


class Searched(NamedTuple):
    model: Path
    pretrained: Pretrained
    pictures: Path
    embeddings: Embeddings


def write_searched(folder: Path, *, components: int | None = None) -> Searched:
    """Pictures `picture(i)` under the names dir/NN.png, all but the last with a caption, of which one is NASTY."""
    model, pictures = folder / "model", folder / "pictures"
    stored(model)
    (pictures / "dir").mkdir(parents=True)
    for i in range(COUNT):
        (pictures / "dir" / f"{i:02}.png").write_bytes(encoded(picture(i)))
        if i < COUNT - 1:
            (pictures / "dir" / f"{i:02}.txt").write_text(NASTY if i == 3 else f"picture number {i}")
    pretrained = load(model)
    options = EmbedOptions(dtype="float32", batch_size=2, rows_per_shard=4, decode="pil", components=components)
    embed(pretrained, [str(pictures)], folder / "embeddings", options=options, model=str(model))
    return Searched(model, pretrained, pictures, open_embeddings(folder / "embeddings"))
