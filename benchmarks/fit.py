"""What fit runs reach, beside what can be reached: a row each in results/fit.csv.

    .venv/bin/python benchmarks/fit.py ROW MODEL ... --threads 1
    .venv/bin/python benchmarks/fit.py gift runs/tiny --table data/products --threads 1

ROW is the file fit_ROW.py beside this one (`row_scripts.py`). MODEL is the encoder; --overrides changes the config of
all runs.
"""

from collections.abc import Sequence

from row_scripts import run_rows


def main(argv: Sequence[str] | None = None) -> None:
    run_rows("fit", __doc__, argv)


if __name__ == "__main__":
    main()
