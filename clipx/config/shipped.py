"""The configs that come with clipx, so that a run can begin without a checkout."""

from pathlib import Path

SHIPPED = (Path(__file__).parents[1] / "config_files").resolve()
"""The folder configs/ of the repository, or its copy in an installed package."""


SUITES = SHIPPED / "suites"
"""Suites of evaluation sets (`clipx.config.suite`), which are no configs of a run."""


def suite_names() -> list[str]:
    """What `clipx zeroshot --suite` takes for clipx's own."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def shipped_names() -> list[str]:
    """What `clipx train` takes for them: `tiny`, and for overlays `overlays/patch_drop`."""
    runs = (path for path in SHIPPED.rglob("*.yaml") if path.parent != SUITES)
    files = sorted(runs, key=lambda path: (path.parent, path.name))
    return [path.relative_to(SHIPPED).with_suffix("").as_posix() for path in files]


def config_path(name: Path | str) -> Path:
    """The file of a config: `name` itself, or the shipped one of that name where there is no such file."""
    path = Path(name)
    if not path.is_file() and path.as_posix() in shipped_names():
        return SHIPPED / f"{path.as_posix()}.yaml"
    return path
