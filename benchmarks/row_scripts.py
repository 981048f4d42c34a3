"""Benchmarks whose rows are scripts of their own: `use.py` has `use_ROW.py`, `fit.py` has `fit_ROW.py`.

A script's docstring is its help, `add_arguments` says what it needs, and `measure` returns or yields its rows.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from harness import device_argument, prepare, print_table, write_rows


def run_rows(topic: str, description: str, argv: Sequence[str] | None) -> None:
    """Runs the row that the arguments name; what it finds goes to results/TOPIC.csv, row by row."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = parser.add_subparsers(dest="row", required=True, metavar="ROW")
    for path in sorted(Path(__file__).parent.glob(f"{topic}_*.py")):
        module = import_module(path.stem)
        name = path.stem.removeprefix(f"{topic}_")
        about = {"help": module.__doc__.partition("\n")[0], "description": module.__doc__}
        row = rows.add_parser(name, formatter_class=argparse.RawDescriptionHelpFormatter, **about)
        device_argument(row)
        module.add_arguments(row)
        row.set_defaults(measure=module.measure)
    arguments = parser.parse_args(argv)
    found: list[dict[str, object]] = []
    for measured in arguments.measure(arguments, prepare(arguments)):
        found.append({"row": arguments.row, **measured})
        write_rows(topic, found[-1:], arguments.out)
    print_table(found, [name for name in found[0] if not name.endswith(("_p20", "_p80"))])
