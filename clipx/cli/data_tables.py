"""Tables of `clipx data`; rich is imported when something is shown."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clipx.cli.output import say
from clipx.config.paths import expand_home
from clipx.printable import shown

if TYPE_CHECKING:
    from clipx.making.make import Made
    from clipx.prepare.stats import SetStatistics


def print_counts(title: str, unit: str, counts: Mapping[str, int]) -> None:
    """Prints a table with a count for each reason."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(title, Column(unit, justify="right"))
    for reason, count in counts.items():
        table.add_row(Text(shown(reason)), f"{count:,}")
    Console().print(table)


def print_made(made: "Made", out: str, *, image_key: str) -> None:
    """Prints what `clipx data make` made, and what it takes to train on all of it."""
    from clipx.data.rows.class_lists import CLASS_NAMES, DATASET_TYPE
    from clipx.making.out_folder import REPORT

    say(f"{out}: {made.num_shards:,} shards, {made.num_samples:,} samples")
    if made.num_joined:
        say(
            f"{made.num_joined:,} rows joined an earlier row of their picture, as further captions of one sample; "
            "--no-group-rows keeps them apart"
        )
    if made.num_several:
        say(
            f"{made.num_several:,} samples have several captions: data.caption_key='json:captions;txt' trains on all "
            "of them, the default (txt) on the first alone"
        )
    if made.num_without_picture or made.num_without_text:
        say(
            f"{made.num_without_picture:,} samples have no picture, {made.num_without_text:,} no text; what fits a "
            "model takes them, what trains on pairs leaves them out"
        )
    if made.num_classes:
        folder = Path(expand_home(out))
        names = folder / CLASS_NAMES
        if (folder / DATASET_TYPE).exists():
            say(f"{made.num_classes:,} classes in {names}; cls holds the numbers of all that a picture shows")
        else:
            say(
                f"{made.num_classes:,} classes in {names}: data.caption_key=cls data.class_names={names} trains on "
                "their names, with data.templates as prompts"
            )
    if made.left_out:
        print_counts("left out", "rows", made.left_out)
        say(f"each of them: {Path(expand_home(out)) / REPORT}")
    if others := [key for key in made.extensions if key and key not in image_key.split(";")]:
        say(f"to train on them: data.image_key={';'.join([image_key, *others])}")


def print_figures(figures: "Mapping[str, SetStatistics]", context_length: int) -> None:
    """Prints what `clipx data stats` measured, a column for each source."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    sources = list(figures.values())
    table = Table("", *(Column(Text(shown(name)), justify="right") for name in figures))

    def add(label: str, field: str, form: str = ",") -> None:
        table.add_row(label, *(format(getattr(source, field), form) for source in sources))

    def add_spread(label: str, field: str, points: Mapping[str, str], *, scale: float = 1, form: str = ",.0f") -> None:
        for point, name in points.items():
            table.add_row(
                f"{label}, {name}", *(format(getattr(source, field)[point] / scale, form) for source in sources)
            )

    add("samples", "num_samples")
    add("of them read", "num_read")
    add("bad", "num_bad")
    table.add_section()
    add_spread("tokens", "tokens", {"p50": "median", "p95": "95%", "max": "most"})
    add(f"longer than {context_length} tokens", "cut_captions", ".2%")
    table.add_section()
    add_spread("short side", "short_side", {"p5": "5%", "p50": "median", "p95": "95%"})
    add_spread("width / height", "aspect", {"p5": "5%", "p50": "median", "p95": "95%"}, form=",.2f")
    add_spread("kB", "num_bytes", {"p50": "median", "p95": "95%", "max": "most"}, scale=1000, form=",.1f")
    for extension in dict.fromkeys(name for source in sources for name in source.formats):
        table.add_row(
            Text(shown(f"{extension} pictures")), *(f"{source.formats.get(extension, 0):,}" for source in sources)
        )
    table.add_section()
    for what in ("images", "captions", "pairs"):
        add(f"repeated {'pictures' if what == 'images' else what}", f"duplicate_{what}", ".2%")
    Console().print(table)
