"""`clipx embed` of shards as use_embed.py times it: peer_clipx.py EXPORT OUT BATCH SHARD ..."""

import json
import sys
import time

from clipx.data.inputs import open_inputs
from clipx.pretrained import load
from clipx.use.embed import EmbedOptions, embed


def main(export: str, out: str, batch: str, *shards: str) -> None:
    pretrained, inputs = load(export), open_inputs(shards)
    began, before = time.monotonic(), time.process_time()
    embedded = embed(pretrained, inputs, out, options=EmbedOptions(batch_size=int(batch)))
    found = {"samples": embedded.num_new, "seconds": time.monotonic() - began}
    print(json.dumps(found | {"cpu_seconds": time.process_time() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
