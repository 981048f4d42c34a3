"""What a trained model is used for, beside the libraries that people use for it: a row each in results/use.csv.

    .venv/bin/python benchmarks/use.py ROW ... --threads 1
    .venv/bin/python benchmarks/use.py pictures MODEL --from SHARDS --threads 1

ROW is the file use_ROW.py beside this one: its docstring is its help, `add_arguments` says what it needs, and `measure`
returns its rows (`harness.speed_rows`). `ratio` is clipx's speed over the peer's, pass by pass; above 1 is faster.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from harness import device_argument, prepare, print_table, write_rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = parser.add_subparsers(dest="row", required=True, metavar="ROW")
    for path in sorted(Path(__file__).parent.glob("use_*.py")):
        module = import_module(path.stem)
        name = path.stem.removeprefix("use_")
        about = {"help": module.__doc__.partition("\n")[0], "description": module.__doc__}
        row = rows.add_parser(name, formatter_class=argparse.RawDescriptionHelpFormatter, **about)
        device_argument(row)
        module.add_arguments(row)
        row.set_defaults(measure=module.measure)
    arguments = parser.parse_args(argv)
    found = [{"row": arguments.row, **row} for row in arguments.measure(arguments, prepare(arguments))]
    write_rows("use", found, arguments.out)
    print_table(found, [name for name in found[0] if not name.endswith(("_p20", "_p80"))])


if __name__ == "__main__":
    main()
