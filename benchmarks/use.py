"""What a trained model is used for, beside the libraries that people use for it: a row each in results/use.csv.

    .venv/bin/python benchmarks/use.py ROW ... --threads 1
    .venv/bin/python benchmarks/use.py pictures MODEL --from SHARDS --threads 1

ROW is the file use_ROW.py beside this one (`row_scripts.py`). `ratio` is clipx's speed over the peer's, pass by pass;
above 1 is faster.
"""

from collections.abc import Sequence

from row_scripts import run_rows


def main(argv: Sequence[str] | None = None) -> None:
    run_rows("use", __doc__, argv)


if __name__ == "__main__":
    main()
