"""What an export to ONNX costs and gains: zero-shot accuracy, file sizes, and the time a picture takes.

    .venv/bin/python benchmarks/export.py MODEL --on DATASET_DIR ... --threads 1

MODEL is what `clipx.load` takes, DATASET_DIR a folder in CLIP_benchmark's layout, as `clipx demo` makes both. Times are
those of the image tower alone, from pixels that are cropped, in turns with the model in eager torch: `ratio` is the
export's time over torch's, so below 1 is faster. The pt2 program is timed beside them, and has no scores of its own.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from harness import Timing, alternate, device_argument, prepare, print_table, ratio, write_rows
from torch import Tensor
from torch.nn.functional import normalize

from clipx.evaluate.run import evaluate_folder
from clipx.export import onnx, pt2
from clipx.export.options import ExportOptions
from clipx.export.parity.onnxruntime import FOLDER, SUFFIXES
from clipx.export.parity.torch_export import program_file
from clipx.pretrained import Pretrained, load

BATCHES = (1, 32)


class Served(Pretrained):
    """A model whose towers are graphs, with the preprocessing and the tokens of the model they were made from."""

    def __init__(self, pretrained: Pretrained, folder: Path, suffix: str, threads: int) -> None:
        super().__init__(pretrained.model, pretrained.config, tokenizer=pretrained.tokenizer)
        self.vision, self.text = (session(folder, name, suffix, threads) for name in ("vision_model", "text_model"))

    def encode_image(self, images: Any) -> Tensor:
        pixels = self.model.image_tower.normalize(images).permute(0, 3, 1, 2).contiguous().numpy()
        return normalize(torch.from_numpy(self.vision.run(["image_embeds"], {"pixel_values": pixels})[0]), dim=-1)

    def encode_text(self, texts: Any) -> Tensor:
        tokens_T, lengths_B = self.tokenize(texts)
        rows = tokens_T.split(lengths_B.tolist())
        mask_BL = (torch.arange(int(lengths_B.max())) < lengths_B[:, None]).long()
        ids_BL = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        feed = {"input_ids": ids_BL.numpy(), "attention_mask": mask_BL.numpy()}
        taken = {value.name: feed[value.name] for value in self.text.get_inputs()}
        return normalize(torch.from_numpy(self.text.run(["text_embeds"], taken)[0]), dim=-1)


def session(folder: Path, name: str, suffix: str, threads: int) -> Any:
    """Of a graph, with as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = folder / FOLDER / f"{name}{suffix}.onnx"
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def contenders(
    pretrained: Pretrained, served: dict[str, Served], folder: Path, batch: int
) -> dict[str, Callable[[], Any]]:
    """One call of the image tower each, on the same random pixels."""
    size = pretrained.config.image.image_size
    pixels_BHWC = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    pixels_B3SS = pretrained.model.image_tower.normalize(pixels_BHWC).permute(0, 3, 1, 2).contiguous()
    program = torch.export.load(program_file(folder, "image", "")).module()
    calls: dict[str, Callable[[], Any]] = {
        "torch": torch.no_grad()(lambda: pretrained.model.encode_image(pixels_BHWC)),
        "pt2": torch.no_grad()(lambda: program(pixels_B3SS)),
    }
    for name, model in served.items():
        feed: dict[str, np.ndarray] = {"pixel_values": pixels_B3SS.numpy()}
        calls[name] = lambda model=model, feed=feed: model.vision.run(["image_embeds"], feed)
    return calls


def row(name: str, folder: Path, scores: dict[str, float], times: dict[int, dict[str, Timing]]) -> dict[str, object]:
    """Of one kind of file; accuracies in percent."""
    found: dict[str, object] = {"kind": name, "repetitions": times[BATCHES[0]][name].count}
    found |= {f"acc1_{folder}": 100 * score for folder, score in scores.items()}
    if name in SUFFIXES:
        for graph in ("model", "vision_model", "text_model"):
            found[f"{graph}_mb"] = (folder / FOLDER / f"{graph}{SUFFIXES[name]}.onnx").stat().st_size / 1e6
    for batch in BATCHES:
        timing, beside = times[batch][name], times[batch]["torch"]
        quotient = ratio(timing, beside)
        found |= {
            f"ms_per_picture_{batch}_p20": 1000 * timing.p20 / batch,
            f"ms_per_picture_{batch}_p50": 1000 * timing.p50 / batch,
            f"ms_per_picture_{batch}_p80": 1000 * timing.p80 / batch,
            f"ratio_{batch}_p20": quotient.p20,
            f"ratio_{batch}_p50": quotient.p50,
            f"ratio_{batch}_p80": quotient.p80,
        }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device_argument(parser)
    parser.add_argument("model", help="a run folder, a checkpoint or an export")
    parser.add_argument("--on", type=Path, nargs="*", default=[], help="folders with pictures and their classes")
    arguments = parser.parse_args(argv)
    device, pretrained, threads = prepare(arguments), load(arguments.model), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.write(pretrained, folder, ExportOptions(int8=True))
        onnx.write(pretrained, folder, ExportOptions(dtype="fp16"))
        pt2.write(pretrained, folder, ExportOptions(only="image"))
        served = {kind: Served(pretrained, folder, suffix, threads) for kind, suffix in SUFFIXES.items()}
        times = {
            batch: alternate(
                contenders(pretrained, served, folder, batch),
                repetitions=arguments.repetitions,
                warmup=3,
                device=device,
            )
            for batch in BATCHES
        }
        rows = []
        for kind in ("torch", "pt2", *SUFFIXES):
            model = served.get(kind, pretrained)
            on = arguments.on if kind != "pt2" else []
            scores = {path.name: evaluate_folder(model, path, batch_size=64, group=None)["acc1"] for path in on}
            rows.append(row(kind, folder, scores, times))
    write_rows("export", [{"model": Path(arguments.model).name, **found} for found in rows], arguments.out)
    columns = [name for name in rows[-1] if not name.endswith(("_p20", "_p80"))]
    print_table(rows, columns)


if __name__ == "__main__":
    main()
