"""Makes one shard from its rows; what every process of `clipx data make` does."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from clipx.data.captions import MAX_TEXT, alternatives
from clipx.data.decode import UndecodableError
from clipx.data.rows.classes import Classes
from clipx.data.rows.row import LeftOutError, Row, Rows, StoredSample
from clipx.data.rows.source_files import image_of
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
            report.num_samples = write_shard(path, self._samples(job.samples, report))
            if not report.num_samples:
                path.unlink()
            write_file(str(self._report_path(job.number)), json.dumps(asdict(report)).encode("utf-8", "replace"))
            place(self.folder, self.name(job.number))
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error}; run the same command again to go on") from error
        return report

    def _report_path(self, number: int) -> Path:
        return self.folder / MAKING / f"{number:0{self.width}}.json"

    def _samples(
        self, samples: Sequence[np.ndarray] | np.ndarray, report: ShardReport
    ) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Key and members of each good sample; the others, and the extensions, go into the report."""
        extensions: Counter[str] = Counter()
        together = {} if self.rows.block_rows == 1 else self._read_together(samples)
        for rows in samples:
            good: dict[int, Row | StoredSample] = {}
            for row in map(int, rows):
                content = together.pop(row) if together else self._read(row)
                if isinstance(content, LeftOutError):
                    report.left_out.append(left_out_line(content, row))
                else:
                    good[row] = content
            if not good:
                continue
            try:
                key, fields, extension = self._sample(int(rows[0]), list(good.values()), report)
            except LeftOutError as error:
                report.left_out += [left_out_line(error, row) for row in good]
                continue
            report.num_joined += len(good) - 1
            extensions[extension] += 1
            yield key, fields
        report.extensions = dict(extensions.most_common())

    def _read_together(
        self, samples: Sequence[np.ndarray] | np.ndarray
    ) -> dict[int, Row | StoredSample | LeftOutError]:
        """All rows, read in the source's order; of the equal images of a sample's rows one is kept."""
        first_of = {int(row): int(rows[0]) for rows in samples for row in rows}
        images: dict[int, bytes | Path] = {}
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
        self, number: int, contents: Sequence[Row | StoredSample], report: ShardReport
    ) -> tuple[str, dict[str, bytes], str]:
        """Key, members and the image's extension of a sample."""
        first = contents[0]
        if isinstance(first, StoredSample):
            return self._stored(first)
        rows = [content for content in contents if isinstance(content, Row)]
        row = merged(rows)
        label = self._label(rows)
        if label is None and not row.captions:
            raise LeftOutError("no label" if self.classes else "no caption", row.name)
        made = self._new(number, row, label=label)
        report.num_several += len(row.captions) > 1
        return made

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

    def _new(self, number: int, row: Row, *, label: str | None) -> tuple[str, dict[str, bytes], str]:
        """Key, members and the image's extension of a row."""
        extension, image = self._image(image_of(row), row.name)
        # `json:captions;txt` must read all captions of a sample, and nobody's field that is called so, too
        record = {"captions.1" if name == "captions" else name: value for name, value in row.record.items()}
        if len(row.captions) > 1:
            record["captions"] = row.captions
        fields = {extension: image}
        if row.captions:
            fields["txt"] = row.captions[0].encode()
        if label is not None:
            fields["cls"] = label.encode()
        if record:
            # a lone surrogate from somebody's JSON has no encoding
            fields["json"] = json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "replace")
        texts = [caption.encode() for caption in row.captions]
        if len(texts) > 1:
            texts.append(fields["json"])
        if (size := max(map(len, texts), default=0)) > MAX_TEXT:
            raise LeftOutError("unreadable row", row.name, f"{size} bytes of text; training reads at most {MAX_TEXT}")
        return f"{number:09}", fields, extension

    def _stored(self, sample: StoredSample) -> tuple[str, dict[str, bytes], str]:
        """Key, members and the image's extension of a sample; an image that is not encoded anew stays as it is."""
        extension = next((key for key, _ in alternatives(self.options.image_key) if key in sample.fields), None)
        if not self.options.images.changes_images:
            if extension is not None and self.options.images.verify:
                self._image(sample.fields[extension], sample.name)
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


def left_out_line(error: LeftOutError, row: int | None) -> dict[str, object]:
    """A line of left_out.jsonl; files that are no rows have no number."""
    return {"row": row, "name": error.name, "reason": error.reason, "detail": error.detail}
