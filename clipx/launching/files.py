"""The files of launch/: their folder, the sizes they ask for, and a copy of them for a person to adapt."""

import re
import shutil
from pathlib import Path

from clipx.errors import InputError

LAUNCH_FILES = (Path(__file__).parents[1] / "launch_files").resolve()
"""The folder launch/ of the repository, or its copy in an installed package."""


def copy_files(folder: Path) -> None:
    """Copies launch/ to `folder`.

    Raises:
        InputError: the folder exists already or cannot be written.
    """
    try:
        shutil.copytree(LAUNCH_FILES, folder)
    except FileExistsError:
        raise InputError(f"{folder} is there already; name a folder that is not, so that no file is replaced") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from error


def slurm_sizes(file: Path) -> tuple[int, int]:
    """Nodes and GPUs per node that a file of launch/slurm/ asks for; 1 if it does not say."""
    text = file.read_text(encoding="utf-8")
    nodes, gpus = (re.search(rf"^#SBATCH --{name}[= ](\d+)", text, re.MULTILINE) for name in ("nodes", "gpus-per-node"))
    return int(nodes[1]) if nodes else 1, int(gpus[1]) if gpus else 1
