"""Embeds whatever there is, in bulk: pictures, their texts, and how well both match, into a folder of shards.

A shard stands for consecutive rows of the input, and consists of blocks that are each one forward pass. Both are of a
fixed size, so no byte depends on how many processes share the work, or on where one was killed. Ranks take shards in
turn; after each they tell each other how it went, so that an error on one ends all.

Shapes: B rows, D embedding.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch.distributed import ProcessGroup

from clipx.config.paths import expand_home
from clipx.data.inputs import Inputs, open_inputs
from clipx.data.recorded_inputs import record_of
from clipx.distributed.collectives import gather_objects, raise_on_all_ranks, rank, world_size
from clipx.errors import InputError, RunError
from clipx.pretrained import Pretrained
from clipx.pretrained.threads import one_thread
from clipx.printable import redact
from clipx.storage.files import is_local
from clipx.use.embed_folder import Report, Request, claimed, complete, read_report
from clipx.use.embeddings import COLUMNS, FORMAT, REDUCTION, Dtype, Manifest
from clipx.use.encode import Encoded, encode
from clipx.use.key_table import require_pyarrow
from clipx.use.pca import PCA, require_components
from clipx.use.reading import Decode
from clipx.use.shard_files import ShardFiles

_SMALLEST, _LARGEST, _SHARDS = 1024, 65_536, 256  # rows of a shard, and how many shards a large input has at least


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """How rows are embedded; all but `workers` decides the bytes."""

    dtype: Dtype = "float16"
    decode: Decode = "fast"
    texts: bool = True
    """Whether the first caption of each row is embedded too."""
    components: int | None = None
    """Of a PCA that is fitted to the embeddings; None keeps them whole."""
    batch_size: int = 128
    """Rows of a forward pass."""
    rows_per_shard: int | None = None
    """A multiple of `batch_size`; None chooses by the number of rows."""
    workers: int = 0


class Embedded(NamedTuple):
    """What was made, by all ranks."""

    manifest: Manifest
    num_new: int
    """Rows that this start embedded; the others were there."""
    seconds: float
    """That it took."""


def embed(
    pretrained: Pretrained,
    inputs: Inputs | Sequence[str],
    out: Path | str,
    *,
    options: EmbedOptions | None = None,
    model: str = "",
    group: ProcessGroup | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Embedded:
    """Embeds all rows into a folder, or goes on where an earlier call was stopped.

    Args:
        pretrained: the model, on this rank's device.
        inputs: the rows, or their addresses.
        out: the folder; new, empty, or of the same request. All ranks see it.
        options: how.
        model: the name of the model, for people who read the manifest.
        group: the ranks that share the work.
        on_progress: gets the rows that are done, and all.

    Raises:
        InputError: the folder is remote or of something else, ranks have other inputs or weights, a storage does not
            answer, no row is any good, or pyarrow is missing.
        RunError: a worker process died, a shard cannot be read, or the disk is full.
    """
    began, options = time.monotonic(), options or EmbedOptions()
    if not is_local(str(out)):
        raise InputError(f"--out {out}: embeddings are mapped from a local disk; write them there, and copy the folder")
    folder = Path(expand_home(str(out)))
    with raise_on_all_ranks(group):
        require_pyarrow()
        opened = inputs if isinstance(inputs, Inputs) else open_inputs(inputs)
        request = _request(pretrained, opened, options)
    request = _agreed(gather_objects(request, group))
    with ExitStack() as stack, one_thread(pretrained.device.type == "cpu"):
        found = None
        with raise_on_all_ranks(group):
            if rank(group) == 0:
                found = stack.enter_context(claimed(folder, request))
        manifest = gather_objects(found, group)[0]
        num_new = 0
        if manifest is None:
            job = _Job(pretrained, opened, folder, request=request, workers=options.workers, group=group)
            num_new = job.embed(on_progress)
            manifest = job.finish(redact(model))
    return Embedded(manifest, num_new, time.monotonic() - began)


def _agreed(requests: Sequence[Request]) -> Request:
    """The request of all ranks, which is the first's; their files may have other times, and so other identities."""
    if len({request.num_inputs for request in requests}) > 1:
        raise InputError("ranks see other inputs, or not all of them; name inputs that all machines see alike")
    if len({request.fingerprint for request in requests}) > 1:  # a checkpoint came while they were loading
        raise InputError("ranks loaded other weights; name a checkpoint or an export, not a run that still trains")
    return requests[0]


def _request(pretrained: Pretrained, inputs: Inputs, options: EmbedOptions) -> Request:
    size, total = options.batch_size, len(inputs)
    per_shard = options.rows_per_shard or min(max(-(-total // _SHARDS), _SMALLEST), _LARGEST)
    if options.components is not None:
        most = total * len(COLUMNS) if options.texts else total
        require_components(options.components, embed_dim=pretrained.config.embed_dim, count=most)
    return Request(
        fingerprint=pretrained.fingerprint,
        inputs=inputs.identity(),
        num_inputs=total,
        dtype=options.dtype,
        decode=options.decode,
        texts=options.texts,
        batch_size=size,
        rows_per_shard=-(-per_shard // size) * size,
        components=options.components,
    )


class _Job:
    """What one rank does for a folder that is not complete."""

    def __init__(
        self,
        pretrained: Pretrained,
        inputs: Inputs,
        folder: Path,
        *,
        request: Request,
        workers: int,
        group: ProcessGroup | None,
    ) -> None:
        self._pretrained, self._inputs, self._folder = pretrained, inputs, folder
        self._request, self._workers, self._group = request, workers, group
        self._shards = _cut(range(len(inputs)), request.rows_per_shard)
        self._files = ShardFiles(
            folder,
            dtype=request.dtype,
            embed_dim=pretrained.config.embed_dim,
            reduced=request.components is not None,
        )

    def embed(self, on_progress: Callable[[int, int], None] | None) -> int:
        """Embeds the shards that are not done; returns the rows that all ranks embedded."""
        group, size = self._group, self._request.batch_size
        missing = [number for number in range(len(self._shards)) if read_report(self._folder, number) is None]
        missing = gather_objects(missing, group)[0]
        mine = missing[rank(group) :: world_size(group)]
        done = len(self._inputs) - sum(len(self._shards[number]) for number in missing)
        num_new = 0
        blocks = (block for number in mine for block in _cut(self._shards[number], size))
        options: dict[str, Any] = {"decode": self._request.decode, "workers": self._workers}
        encoded = encode(self._pretrained, self._inputs, blocks, texts=self._request.texts, **options)
        with closing(encoded):
            for turn in range(-(-len(missing) // world_size(group))):
                together = [self._shards[number] for number in missing[turn * world_size(group) :][: world_size(group)]]
                in_turn, new = sum(map(len, together)), 0
                with raise_on_all_ranks(group):
                    if turn < len(mine):
                        rows = self._shards[mine[turn]]
                        taken = _taken(encoded, rows, _shown(on_progress, done, in_turn / len(rows), len(self._inputs)))
                        new = self._files.write(mine[turn], taken)
                done += in_turn
                num_new += sum(gather_objects(new, group))
        return num_new

    def finish(self, model: str) -> Manifest:
        """Reduces the embeddings if that was asked for, and completes the folder."""
        group, request, shards = self._group, self._request, range(len(self._shards))
        pca = None
        with raise_on_all_ranks(group):
            reports = [self._report(number) for number in shards]
            if not any(report.rows for report in reports):
                first = reports[0].left_out[0]
                why = f"{first.reason} ({first.detail})" if first.detail else first.reason
                raise InputError(f"no row could be embedded; the first is {first.name}: {why}; look at the input")
            if request.components is not None and rank(group) == 0:
                self._files.fit(request.components, shards)
        columns = [name for name in COLUMNS if any(getattr(report, f"{name}s") for report in reports)]
        with raise_on_all_ranks(group):
            if request.components is not None:
                pca = PCA.load(self._folder / REDUCTION)
            for number in shards[rank(group) :: world_size(group)]:
                self._files.finish(number, columns, pca, rows=reports[number].rows)
        manifest = self._manifest(model, reports, pca)
        with raise_on_all_ranks(group):
            if rank(group) == 0:
                complete(self._folder, manifest, reports)
        return manifest

    def _report(self, number: int) -> Report:
        report = read_report(self._folder, number)
        if report is None:
            raise RunError(f"{self._folder} is not the same folder for all ranks; name one that all machines see")
        return report

    def _manifest(self, model: str, reports: Sequence[Report], pca: PCA | None) -> Manifest:
        request, full_dim = self._request, self._pretrained.config.embed_dim
        num_images, num_texts = (sum(getattr(report, f"{name}s") for report in reports) for name in COLUMNS)
        reduced = None
        if pca is not None:
            reduced = {
                "components": request.components,
                "from_dim": full_dim,
                "explained_variance": pca.explained_variance,
            }
        return Manifest(
            format=FORMAT,
            fingerprint=request.fingerprint,
            model=model,
            embed_dim=request.components or full_dim,
            dtype=request.dtype,
            columns=tuple(name for name, number in zip(COLUMNS, (num_images, num_texts), strict=True) if number),
            inputs=request.inputs,
            decode=request.decode,
            num_rows=sum(report.rows for report in reports),
            num_images=num_images,
            num_texts=num_texts,
            num_left_out=sum(len(report.left_out) for report in reports),
            rows_per_shard=request.rows_per_shard,
            shard_rows=tuple(report.rows for report in reports),
            reduced=reduced,
            request=asdict(request),
            source=record_of(self._inputs),
        )


def _cut(rows: range, size: int) -> list[range]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _taken(encoded: Iterator[Encoded], rows: range, show: Callable[[int], None]) -> list[Encoded]:
    """The blocks of a shard's rows."""
    taken: list[Encoded] = []
    done = 0
    while done < len(rows):
        taken.append(next(encoded))
        done += len(taken[-1].rows)
        show(done)
    return taken


def _shown(
    on_progress: Callable[[int, int], None] | None, done: int, ranks: float, total: int
) -> Callable[[int], None]:
    """Tells how far all ranks are, by this one's rows of a shard: `ranks` as many are done for each of them."""

    def show(rows: int) -> None:
        if on_progress is not None:
            on_progress(done + round(rows * ranks), total)

    return show
