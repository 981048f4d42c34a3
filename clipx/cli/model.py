"""The arguments that name a trained model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

WeightsOption = Annotated[
    Literal["average", "trained"] | None,
    typer.Option(help="Of a run that kept an average of its weights (ema): which to take; default: the average."),
]
ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A run folder, a checkpoint, or an export folder.", show_default=False)
]
