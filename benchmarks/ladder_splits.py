"""Cuts an evaluation set in two by a hash: one half to choose recipes by, the other to report.

Whoever takes the best of many recipes by a set has fitted to that set; what is reported comes from pictures that had no
say. `by: key` cuts pictures with captions, `by: class` a `wds_*` set: half of the classes' pictures, all class names,
so that an accuracy stays one among all classes.
"""

import hashlib
import shutil
import tarfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from clipx.errors import InputError

HALVES = ("choose", "report")


def half_of(name: str) -> str:
    """The half of a key or a class: of equal chance, and the same everywhere."""
    return HALVES[hashlib.sha256(name.encode()).digest()[0] % 2]


def write_splits(splits: Mapping[str, Mapping[str, str]], folder: Path, *, data: Path) -> None:
    """Writes `FOLDER/NAME/choose` and `FOLDER/NAME/report` of every split that is not there yet.

    Args:
        splits: those of a ladder.
        folder: of the halves.
        data: what {data} stands for.

    Raises:
        InputError: a set has no shards, or a split is no split.
    """
    for name, split in splits.items():
        if split.keys() != {"from", "by"} or split["by"] not in ("key", "class"):
            raise InputError(f"splits.{name}={dict(split)}: expected {{from: FOLDER, by: key}} or by: class")
        if not (folder / name).exists():
            unfinished = folder / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            by_class = split["by"] == "class"
            source = Path(split["from"].replace("{data}", str(data)))
            (_cut_classes if by_class else _cut_keys)(source, unfinished)
            unfinished.rename(folder / name)


def _cut_keys(source: Path, out: Path) -> None:
    for shard in _shards(source):
        _cut(shard, {half: out / half / shard.name for half in HALVES}, half_of)


def _cut_classes(source: Path, out: Path) -> None:
    for half in HALVES:
        (out / half / "test").mkdir(parents=True)
        for path in [*source.glob("*.txt"), *source.glob("test/*.txt")]:
            shutil.copyfile(path, out / half / path.relative_to(source))
    for shard in _shards(source / "test"):
        with tarfile.open(shard) as tar:
            classes = {
                _key(member.name): tar.extractfile(member).read().decode().strip()  # type: ignore[union-attr]
                for member in tar
                if member.name.endswith(".cls")
            }
        halves = {key: half_of(number) for key, number in classes.items()}
        _cut(shard, {half: out / half / "test" / shard.name for half in HALVES}, halves.__getitem__)


def _cut(shard: Path, outs: Mapping[str, Path], half: Callable[[str], str]) -> None:
    """Copies each member of a shard to the tar of its half."""
    for path in outs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        halves = {name: stack.enter_context(tarfile.open(path, "w")) for name, path in outs.items()}
        tar = stack.enter_context(tarfile.open(shard))
        for member in tar:
            if member.isfile():
                halves[half(_key(member.name))].addfile(member, tar.extractfile(member))


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _shards(folder: Path) -> list[Path]:
    if not (found := sorted(folder.glob("*.tar"))):
        raise InputError(f"{folder}: no shards (*.tar) to split are there; see --data")
    return found
