"""What the draw of a caption costs each sample: a plain key beside parts of a long caption.

    python benchmarks/captions.py [--repetitions 40]

A sample has a short `.txt` and a json member with a caption of 77 words in 7 sentences. Each contender reads and draws
1,000 samples, in turns with the others. Microseconds per sample, as a table; the members are in memory.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from harness import alternate, print_table, ratio

from clipx.config.data import DataConfig, sources
from clipx.data.captions import CaptionReader

LONG = (
    "A brown dog with a red collar stands on a wooden pier that reaches into a calm lake. Behind it, low hills are "
    "covered by pines. The sky is clear, and a few thin clouds hang near the horizon. Dr. Smith, e.g., might call it "
    "a Labrador. A boat of about 3.5 m lies at the pier's end. Its hull is painted white and blue. The light suggests "
    "late afternoon, and long shadows fall across the planks."
)
FIELDS = {"json": json.dumps({"long": LONG}).encode(), "txt": b"a dog on a pier"}
SAMPLES = 1000
CONTENDERS: dict[str, tuple[Any, int]] = {
    "json:long": ("json:long", 1),
    "{json:long: 1, txt: 1}": ({"json:long": 1, "txt": 1}, 1),
    "{json:long: {sentence: 1}}": ({"json:long": {"sentence": 1}}, 1),
    "{json:long: {sentence: 0}}": ({"json:long": {"sentence": 0}}, 1),
    "{json:long: {}, txt: 1}": ({"json:long": {}, "txt": 1}, 1),
    "{json:long: {}}, 4 captions per image": ({"json:long": {}}, 4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=40)
    repetitions = parser.parse_args().repetitions
    contenders = {name: _drawing(key, count) for name, (key, count) in CONTENDERS.items()}
    times = alternate(contenders, repetitions=repetitions, warmup=2, device=torch.device("cpu"))
    plain = times["json:long"]
    rows = [
        {
            "caption_key": name,
            **{f"us_{part}": 1e6 * getattr(time, part) / SAMPLES for part in ("p20", "p50", "p80")},
            "of_plain_p50": ratio(time, plain).p50,
        }
        for name, time in times.items()
    ]
    print_table(rows, list(rows[0]))


def _drawing(caption_key: Any, captions_per_image: int) -> Callable[[], object]:
    (source,) = sources(DataConfig(train=["none.tar"], caption_key=caption_key, equal_captions="negatives"))
    reader = CaptionReader(source, captions_per_image=captions_per_image, seed=0)
    return lambda: [reader.read(FIELDS, epoch=0, sample_id=sample_id) for sample_id in range(SAMPLES)]


if __name__ == "__main__":
    main()
