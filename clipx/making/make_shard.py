"""Makes one shard from its rows; what every process of `clipx data make` does."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from clipx.data.captions import MAX_TEXT, alternatives
from clipx.data.decode import UndecodableError
from clipx.data.rows.classes import Classes
from clipx.data.rows.row import LeftOutError, Row, Rows, StoredSample
from clipx.data.rows.source_files import image_of, image_or_none
from clipx.data.rows.values import cell_text, json_member
from clipx.data.shard_writer import write_shard
from clipx.errors import RunError, some_names
from clipx.making.groups import merged
from clipx.making.images import ImageOptions, stored_image
from clipx.making.out_folder import MAKING, place
from clipx.storage.files import write_file


@dataclass(frozen=True, kw_only=True)
class MakeOptions:
    """What is made of the rows."""

    shard_size: int = 1000
    """Samples per shard, counting those that are left out."""
    num_shards: int | None = None
    """Shards, as equal as can be; instead of `shard_size`."""
    shuffle: int | None = None
    """Seed of a random order; None keeps the order of the source."""
    group_rows: bool = True
    """Rows of one picture are one sample with all of their captions; else each is a sample of its own."""
    allow_absent: bool = False
    """Rows without a picture or a text are samples, too, if anything else is known; else they are left out."""
    key: str | None = None
    """Column of the samples' keys (`clipx.making.keys`); None: the numbers of rows are keys."""
    images: ImageOptions = field(default_factory=ImageOptions)
    """What is done to images."""
    image_key: str = "jpg;jpeg;png;webp"
    """Extensions that hold the image of samples that come from shards."""


@dataclass(frozen=True)
class ShardJob:
    """A shard to be made."""

    number: int
    samples: Sequence[np.ndarray] | np.ndarray
    """For each sample its rows of the source, in the shard's order; rows of one picture are one sample."""
    keys: Mapping[int, str] = field(default_factory=dict)
    """The key of each of these rows; without any, their numbers are keys."""


@dataclass
class ShardReport:
    """What became of a shard's rows."""

    shard: int
    num_rows: int
    num_samples: int = 0
    num_joined: int = 0
    """Rows that joined the sample of an earlier row."""
    num_several: int = 0
    """Samples with several captions."""
    num_without_picture: int = 0
    """Samples without a picture, where they are allowed."""
    num_without_text: int = 0
    """Samples without a caption, where they are allowed."""
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
    classes: Classes | None = None
    """Of rows with labels: what becomes their `cls` member."""

    def report(self, number: int) -> ShardReport | None:
        """What the report of a shard says, None if the shard is not done."""
        try:
            report = ShardReport(**json.loads(self._report_path(number).read_bytes()))
        except FileNotFoundError:
            return None
        place(self.folder, self.name(number))  # it was stopped before that
        return report

    def name(self, number: int) -> str:
        """The name of a shard."""
        return f"{number:0{self.width}}.tar"

    def __call__(self, job: ShardJob) -> ShardReport:
        """Makes a shard; one without any sample is not written.

        Raises:
            RunError: it cannot be written.
        """
        report = ShardReport(job.number, sum(map(len, job.samples)))
        path = self.folder / MAKING / self.name(job.number)
        try:
            report.num_samples = write_shard(path, self._samples(job, report))
            if not report.num_samples:
                path.unlink()
            write_file(str(self._report_path(job.number)), json.dumps(asdict(report)).encode("utf-8", "replace"))
            place(self.folder, self.name(job.number))
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error}; run the same command again to go on") from error
        return report

    def _report_path(self, number: int) -> Path:
        return self.folder / MAKING / f"{number:0{self.width}}.json"

    def _samples(self, job: ShardJob, report: ShardReport) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Key and members of each good sample; the others, and the extensions, go into the report."""
        extensions: Counter[str] = Counter()
        together = {} if self.rows.block_rows == 1 else self._read_together(job.samples)
        for rows in job.samples:
            good: dict[int, Row | StoredSample] = {}
            for row in map(int, rows):
                content = together.pop(row) if together else self._read(row)
                if isinstance(content, LeftOutError):
                    report.left_out.append(left_out_line(content, self.rows.number(row)))
                else:
                    good[row] = content
            for first, part in self._parts(int(rows[0]), good):
                try:
                    fields, extension = self._sample(list(part.values()), report)
                except LeftOutError as error:
                    report.left_out += [left_out_line(error, self.rows.number(row)) for row in part]
                    continue
                report.num_joined += len(part) - 1
                if extension is not None:
                    extensions[extension] += 1
                yield self._key(first, part[min(part)], job.keys), fields
        report.extensions = dict(extensions.most_common())

    def _parts(
        self, first: int, good: dict[int, Row | StoredSample]
    ) -> Iterator[tuple[int, dict[int, Row | StoredSample]]]:
        """The samples of rows that name one picture: one, or if it is absent one of each; with the row of the key."""
        contents = [content for content in good.values() if isinstance(content, Row)]
        if self.options.allow_absent and len(contents) > 1 and not _is_there(contents[0]):
            yield from ((row, {row: content}) for row, content in good.items())
        elif good:
            yield first, good

    def _key(self, row: int, content: Row | StoredSample, keys: Mapping[int, str]) -> str:
        if keys:
            return keys[row]
        return content.key if isinstance(content, StoredSample) else f"{self.rows.number(row):09}"

    def _read_together(
        self, samples: Sequence[np.ndarray] | np.ndarray
    ) -> dict[int, Row | StoredSample | LeftOutError]:
        """All rows, read in the source's order; of the equal images of a sample's rows one is kept."""
        first_of = {int(row): int(rows[0]) for rows in samples for row in rows}
        images: dict[int, bytes | Path | None] = {}
        contents: dict[int, Row | StoredSample | LeftOutError] = {}
        for row in sorted(first_of):
            content = self._read(row)
            if isinstance(content, Row):
                content = replace(content, image=images.setdefault(first_of[row], content.image))
            contents[row] = content
        return contents

    def _read(self, row: int) -> Row | StoredSample | LeftOutError:
        try:
            return self.rows.read(row)
        except LeftOutError as error:
            return error

    def _sample(
        self, contents: Sequence[Row | StoredSample], report: ShardReport
    ) -> tuple[dict[str, bytes], str | None]:
        """Members and the image's extension of a sample; None if it has no image."""
        first = contents[0]
        if isinstance(first, StoredSample):
            return self._stored(first)
        rows = [content for content in contents if isinstance(content, Row)]
        row = merged(rows)
        label = self._label(rows)
        if label is None and not row.captions and not self.options.allow_absent:
            raise LeftOutError("no label" if self.classes else "no caption", row.name)
        fields, extension = self._new(row, label=label)
        report.num_several += len(row.captions) > 1
        if self.options.allow_absent:
            report.num_without_picture += extension is None
            report.num_without_text += not row.captions
        return fields, extension

    def _label(self, rows: Sequence[Row]) -> str | None:
        """The number of the class of a picture's rows, or the numbers of several if labels are lists; None without.

        Raises:
            LeftOutError: rows of one picture are of different classes.
        """
        if self.classes is None:
            return None
        found = [of_row for row in rows if (of_row := self.classes.numbers(row.label)) is not None]
        numbers = sorted({number for of_row in found for number in of_row})
        if len(numbers) > 1 and not self.classes.several:
            names = some_names([self.classes.names[number] for number in numbers])
            raise LeftOutError("no label", rows[0].name, f"the rows of this picture are of several classes: {names}")
        return " ".join(map(str, numbers)) if found else None

    def _new(self, row: Row, *, label: str | None) -> tuple[dict[str, bytes], str | None]:
        """Members and the image's extension of a row."""
        picture = self._picture(row)
        if picture is None and label is None and not row.captions and not self._has_others(row):
            raise LeftOutError("nothing in it", row.name, "neither a picture nor a text nor any other value")
        record = row.record
        if not self.rows.keeps_all:
            # `json:captions;txt` must read all captions of a sample, and nobody's field that is called so, too
            record = {"captions.1" if name == "captions" else name: value for name, value in record.items()}
            if len(row.captions) > 1:
                record["captions"] = row.captions
        fields = {} if picture is None else dict([picture])
        if row.captions:
            fields["txt"] = row.captions[0].encode()
        if label is not None:
            fields["cls"] = label.encode()
        if record:
            fields["json"] = json_member(record)
        texts = [caption.encode() for caption in row.captions]
        if len(texts) > 1 or (record and self.rows.keeps_all):
            texts.append(fields["json"])
        if (size := max(map(len, texts), default=0)) > MAX_TEXT:
            raise LeftOutError("unreadable row", row.name, f"{size} bytes of text; training reads at most {MAX_TEXT}")
        return fields, None if picture is None else picture[0]

    def _picture(self, row: Row) -> tuple[str, bytes] | None:
        """Extension and bytes of a row's picture; None if it is absent, and may be."""
        image = image_or_none(row) if self.options.allow_absent else image_of(row)
        return None if image is None else self._image(image, row.name)

    def _has_others(self, row: Row) -> bool:
        """Whether a row has a value beside the names of its picture and itself."""
        names = (row.image_field, self.options.key)
        return any(cell_text(value) is not None for name, value in row.record.items() if name not in names)

    def _stored(self, sample: StoredSample) -> tuple[dict[str, bytes], str | None]:
        """Members and the image's extension of a sample; an image that is not encoded anew stays as it is."""
        extension = next((key for key, _ in alternatives(self.options.image_key) if key in sample.fields), None)
        if not self.options.images.changes_images:
            if extension is not None and self.options.images.verify:
                self._image(sample.fields[extension], sample.name)
            return sample.fields, extension or ""
        if extension is None and self.options.allow_absent:
            return sample.fields, None
        if extension is None:
            raise LeftOutError("no picture", sample.name, f"none of its members is {self.options.image_key}")
        new_extension, image = self._image(sample.fields[extension], sample.name)
        others = {name: data for name, data in sample.fields.items() if name != extension}
        return {**others, new_extension: image}, new_extension

    def _image(self, data: bytes, name: str) -> tuple[str, bytes]:
        try:
            return stored_image(data, self.options.images)
        except UndecodableError as error:
            raise LeftOutError("unreadable picture", name, str(error)) from error


def _is_there(row: Row) -> bool:
    return row.image is not None and (isinstance(row.image, bytes) or os.path.exists(row.image))


def left_out_line(error: LeftOutError, row: int | None) -> dict[str, object]:
    """A line of left_out.jsonl; files that are no rows have no number."""
    return {"row": row, "name": error.name, "reason": error.reason, "detail": error.detail}
