"""The configs that come with clipx, so that a run can begin without a checkout."""

from pathlib import Path

SHIPPED = (Path(__file__).parents[1] / "config_files").resolve()
"""The folder configs/ of the repository, or its copy in an installed package."""


def shipped_names() -> list[str]:
    """What `clipx train` takes for them: `tiny`, and for overlays `overlays/patch_drop`."""
    files = sorted(SHIPPED.rglob("*.yaml"), key=lambda path: (path.parent, path.name))
    return [path.relative_to(SHIPPED).with_suffix("").as_posix() for path in files]


def config_path(name: Path | str) -> Path:
    """The file of a config: `name` itself, or the shipped one of that name where there is no such file."""
    path = Path(name)
    if not path.is_file() and path.as_posix() in shipped_names():
        return SHIPPED / f"{path.as_posix()}.yaml"
    return path
