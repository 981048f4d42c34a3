"""Makes one shard from its rows; what every process of `clipx data make` does."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from clipx.data.captions import alternatives
from clipx.data.decode import UndecodableError
from clipx.data.shard_writer import write_shard
from clipx.errors import RunError
from clipx.prepare.images import ImageOptions, stored_image
from clipx.prepare.rows import LeftOutError, Row, Rows, StoredSample
from clipx.storage.files import write_file

MAKING = ".making"
"""Folder in that of the shards, which holds the reports until all shards are done."""


@dataclass(frozen=True, kw_only=True)
class MakeOptions:
    """What is made of the rows."""

    shard_size: int = 1000
    """Rows per shard."""
    num_shards: int | None = None
    """Shards, as equal as can be; instead of `shard_size`."""
    shuffle: int | None = None
    """Seed of a random order; None keeps the order of the source."""
    images: ImageOptions = field(default_factory=ImageOptions)
    """What is done to images."""
    image_key: str = "jpg;jpeg;png;webp"
    """Extensions that hold the image of samples that come from shards."""


@dataclass(frozen=True)
class ShardJob:
    """A shard to be made."""

    number: int
    rows: Sequence[int] | np.ndarray
    """Rows of the source, in the shard's order."""


@dataclass
class ShardReport:
    """What became of a shard's rows."""

    shard: int
    num_rows: int
    num_samples: int = 0
    left_out: list[dict[str, object]] = field(default_factory=list)
    """Row, name, reason and detail of each that made no sample."""
    extensions: dict[str, int] = field(default_factory=dict)
    """Images by their extension."""


@dataclass(frozen=True, kw_only=True)
class ShardMaker:
    """Writes shards and, after each, its report: a shard is done when its report is there."""

    rows: Rows
    folder: Path
    """The shards' folder."""
    options: MakeOptions
    width: int
    """Digits of a shard's name."""

    def report(self, number: int) -> ShardReport | None:
        """What the report of a shard says, None if the shard is not done."""
        try:
            return ShardReport(**json.loads(self._report_path(number).read_bytes()))
        except FileNotFoundError:
            return None

    def __call__(self, job: ShardJob) -> ShardReport:
        """Makes a shard; one without any sample is not written.

        Raises:
            RunError: it cannot be written.
        """
        report = ShardReport(job.number, len(job.rows))
        path = self.folder / f"{job.number:0{self.width}}.tar"
        try:
            report.num_samples = write_shard(path, self._samples(job.rows, report))
            if not report.num_samples:
                path.unlink()
            write_file(str(self._report_path(job.number)), json.dumps(asdict(report)).encode())
        except OSError as error:
            raise RunError(
                f"{path} cannot be written: {error.strerror or error}; make room, then run the same command again"
            ) from error
        return report

    def _report_path(self, number: int) -> Path:
        return self.folder / MAKING / f"{number:0{self.width}}.json"

    def _samples(self, rows: Sequence[int] | np.ndarray, report: ShardReport) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Key and members of each good sample; the others, and the extensions, go into the report."""
        extensions: Counter[str] = Counter()
        # rows that can only be read together are read in the source's order first
        together = {} if self.rows.block_rows == 1 else {row: self._read(int(row)) for row in sorted(rows)}
        for row in rows:
            try:
                content = together.pop(row) if together else self._read(int(row))
                if isinstance(content, LeftOutError):
                    raise content
                if isinstance(content, StoredSample):
                    key, fields, extension = self._stored(content)
                else:
                    key, fields, extension = self._new(int(row), content)
            except LeftOutError as error:
                report.left_out.append(
                    {"row": int(row), "name": error.name, "reason": error.reason, "detail": error.detail}
                )
                continue
            extensions[extension] += 1
            yield key, fields
        report.extensions = dict(extensions.most_common())

    def _read(self, row: int) -> Row | StoredSample | LeftOutError:
        try:
            return self.rows.read(row)
        except LeftOutError as error:
            return error

    def _new(self, number: int, row: Row) -> tuple[str, dict[str, bytes], str]:
        """Key, members and the image's extension of a row."""
        extension, image = self._image(row.image, row.name)
        record = dict(row.record)
        if len(row.captions) > 1:
            record["captions"] = row.captions
        fields = {extension: image, "txt": row.captions[0].encode()}
        if record:
            # a lone surrogate from somebody's JSON has no encoding
            fields["json"] = json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "replace")
        return f"{number:09}", fields, extension

    def _stored(self, sample: StoredSample) -> tuple[str, dict[str, bytes], str]:
        """Key, members and the image's extension of a sample; an image that is not encoded anew stays as it is."""
        extension = next((key for key, _ in alternatives(self.options.image_key) if key in sample.fields), None)
        if not self.options.images.changes_images:
            return sample.key, sample.fields, extension or ""
        if extension is None:
            raise LeftOutError("no picture", sample.name, f"none of its members is {self.options.image_key}")
        new_extension, image = self._image(sample.fields[extension], sample.name)
        others = {name: data for name, data in sample.fields.items() if name != extension}
        return sample.key, {**others, new_extension: image}, new_extension

    def _image(self, data: bytes, name: str) -> tuple[str, bytes]:
        try:
            return stored_image(data, self.options.images)
        except UndecodableError as error:
            raise LeftOutError("unreadable picture", name, str(error)) from error
