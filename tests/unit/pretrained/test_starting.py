"""Runs that start from other libraries' folders: their first loss, and position embeddings of other sizes."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_files import write_shards
from tiny_clip import encoded, picture
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers_folders import photographs

import clipx
from clipx.config.schema import RunConfig
from clipx.data.tokenizer import build_tokenizer
from clipx.distributed.runtime import start_runtime
from clipx.errors import InputError
from clipx.models.clip import build_model
from clipx.pretrained import Pretrained, start_from
from clipx.train.build import build_run
from clipx.types import Batch

SHORT = ["a photo of a cat", "two dogs"]


@pytest.fixture(scope="session")
def folders(transformers_folder: Callable[[str], Path], open_clip_folder: Callable[[str], Path]) -> dict[str, Path]:
    """A folder of each kind."""
    return {
        "clip": transformers_folder("clip, quick_gelu"),
        "siglip": transformers_folder("siglip"),
        "open_clip": open_clip_folder("quick_gelu"),
        "open_clip_timm": open_clip_folder("siglip"),
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    captions = ["a cat", "two dogs near the house", "the red fox", "a photo"]
    pictures = photographs(12)
    samples = {i: {"png": encoded(pictures[i]), "txt": f"{captions[i % 4]} {i}".encode()} for i in range(12)}
    write_shards(folder, [12], replaced=samples)
    return folder


def run_config(folder: Path, run_dir: Path, *overrides: str, shards: Path | str = "none.tar") -> RunConfig:
    """A run of one step that starts from a folder and says nothing of its model."""
    path = run_dir.with_suffix(".yaml")
    path.write_text(
        f"run_dir: {run_dir}\nsteps: 1\nglobal_batch_size: 8\nprecision: fp32\nstart_from: {folder}\n"
        f"data: {{train: ['{shards}'], workers: 0}}\noptim: {{warmup_steps: 0}}\n"
        "checkpoint: {every_minutes: 0}\ntrack: {wandb: disabled, every_steps: 1}\n"
    )
    return clipx.load_config(path, overrides)


def begun(folder: Path, tmp_path: Path, *overrides: str) -> Pretrained:
    """A new model of the run's config with the weights of the folder."""
    config = run_config(folder, tmp_path / "run", *overrides).model
    tokenizer = build_tokenizer(config.text)
    model = build_model(config, vocab_size=tokenizer.vocab_size, seed=3)
    start_from(folder, model, config=config, tokenizer=tokenizer)
    return Pretrained(model.eval(), config, tokenizer=tokenizer)


def first_batch(config: RunConfig) -> Batch:
    with start_runtime(config) as runtime:
        return next(build_run(config, runtime).batches())


def pixels_of(images_IHWC: Tensor, mean: Any, std: Any) -> Tensor:
    scaled_B3HW = images_IHWC.permute(0, 3, 1, 2) / 255
    return (scaled_B3HW - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def token_rows(batch: Batch, *, fill: int) -> Tensor:
    return pad_sequence(list(batch.tokens_T.split(batch.lengths_B.tolist())), batch_first=True, padding_value=fill)


def softmax_loss(logits_BB: Tensor) -> float:
    targets_B = torch.arange(len(logits_BB))
    losses = [functional.cross_entropy(logits, targets_B) for logits in (logits_BB, logits_BB.T)]
    return float(sum(losses) / 2)


def sigmoid_loss(logits_BB: Tensor) -> float:
    signs_BB = 2 * torch.eye(len(logits_BB)) - 1
    return float(-functional.logsigmoid(signs_BB * logits_BB).sum() / len(logits_BB))


@torch.no_grad()
def library_loss(kind: str, folder: Path, batch: Batch) -> float:
    """Of the library's own model on the same pixels and tokens."""
    if kind.startswith("open_clip"):
        import open_clip

        model = open_clip.create_model(f"local-dir:{folder}").eval()
        config = json.loads((folder / "open_clip_config.json").read_text())["preprocess_cfg"]
        normal = {key: config.get(key, getattr(open_clip, f"OPENAI_DATASET_{key.upper()}")) for key in ("mean", "std")}
        ids_BL = functional.pad(tokens_BL := token_rows(batch, fill=0), (0, 16 - tokens_BL.shape[1]))
        images_BD, texts_BD, scale, *bias = model(pixels_of(batch.images_IHWC, **normal), ids_BL)
        logits_BB = scale * images_BD @ texts_BD.T + (bias[0] if bias else 0)
    else:
        from transformers import AutoImageProcessor, AutoModel

        model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
        pixels_B3HW = pixels_of(batch.images_IHWC, processor.image_mean, processor.image_std)
        fill = model.config.text_config.eos_token_id if kind == "clip" else 0
        logits_BB = model(input_ids=token_rows(batch, fill=fill), pixel_values=pixels_B3HW).logits_per_image
    return (sigmoid_loss if "loss.type=sigmoid" in SETTINGS[kind] else softmax_loss)(logits_BB)


SETTINGS = {"clip": (), "siglip": ("loss.type=sigmoid",), "open_clip": (), "open_clip_timm": ("loss.type=sigmoid",)}


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_first_loss_is_the_librarys(folders: dict[str, Path], shards: Path, tmp_path: Path, kind: str) -> None:
    config = run_config(folders[kind], tmp_path / "run", *SETTINGS[kind], shards=shards)
    batch = first_batch(config)
    assert clipx.train(config) is clipx.Status.COMPLETE
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert first == pytest.approx(library_loss(kind, folders[kind], batch), abs=1e-5)


@pytest.mark.full
def test_a_run_goes_on_without_the_folder_that_it_started_from(
    folders: dict[str, Path], shards: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["open_clip"], tmp_path / "before")
    given = ("model.image.image_size=24", "model.text.context_length=9")
    begun = run_config(folder, tmp_path / "run", *given, shards=shards)
    assert clipx.train(begun) is clipx.Status.COMPLETE
    shutil.rmtree(folder)
    config = run_config(folder, tmp_path / "run", *given, "steps=2", shards=shards)
    assert config.model == begun.model
    assert clipx.train(config) is clipx.Status.COMPLETE
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_positions_of_transformers_are_resampled_as_there(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModel

    for kind in ("clip", "siglip"):
        model = begun(folders[kind], tmp_path, "model.image.image_size=80")
        images_BHWC = torch.stack([model.preprocess(picture(i, (90, 84))) for i in range(3)])
        theirs = AutoModel.from_pretrained(folders[kind]).eval()
        pixels_B3HW = pixels_of(images_BHWC, model.config.image.mean, model.config.image.std)
        with torch.no_grad():
            output = theirs.get_image_features(pixel_values=pixels_B3HW, interpolate_pos_encoding=True)
        expected_BD = functional.normalize(output.pooler_output, dim=-1)
        torch.testing.assert_close(model.encode_image(images_BHWC), expected_BD, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "size"), [("open_clip", 48), ("open_clip", 24), ("open_clip_timm", 128)])
def test_positions_of_open_clip_are_resampled_as_there(
    folders: dict[str, Path], tmp_path: Path, kind: str, size: int
) -> None:
    """Its own ViT by open_clip, a trunk of timm's by timm."""
    import open_clip

    model = begun(folders[kind], tmp_path, f"model.image.image_size={size}")
    theirs = open_clip.create_model(f"local-dir:{folders[kind]}", force_image_size=size).eval()
    images_BHWC = torch.stack([model.preprocess(picture(i, (90, 84))) for i in range(3)])
    with torch.no_grad():
        pixels_B3HW = pixels_of(images_BHWC, model.config.image.mean, model.config.image.std)
        expected_BD = theirs.encode_image(pixels_B3HW, normalize=True)
    torch.testing.assert_close(model.encode_image(images_BHWC), expected_BD, atol=1e-5, rtol=0)


def test_the_two_ways_of_resampling_differ(folders: dict[str, Path], tmp_path: Path) -> None:
    from clipx.models.vit import fit_positions

    trunk = begun(folders["clip"], tmp_path, "model.image.image_size=80").model.image_tower.trunk
    table_1NC = torch.randn(1, 1 + 9, 32, generator=torch.Generator().manual_seed(0))
    ways = [fit_positions(trunk, table_1NC, antialias=antialias) for antialias in (True, False)]
    assert ways[0][:, 0].equal(ways[1][:, 0])  # the class token's
    assert (ways[0] - ways[1]).abs().mean() > 0.05


def test_a_shorter_context_leaves_texts_that_fit_as_they_are(folders: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("clip", "open_clip"):
        whole = clipx.load(folders[kind])
        shorter = begun(folders[kind], tmp_path, "model.text.context_length=9")
        torch.testing.assert_close(shorter.encode_text(SHORT), whole.encode_text(SHORT), atol=1e-6, rtol=0)
    import open_clip

    texts_ND = whole.encode_text(SHORT)
    stretched = open_clip.create_model(f"local-dir:{folders['open_clip']}", force_context_length=9).eval()
    tokens_T, lengths_B = shorter.tokenize(SHORT)
    rows = pad_sequence(list(tokens_T.split(lengths_B.tolist())), batch_first=True)
    with torch.no_grad():
        theirs_ND = stretched.encode_text(functional.pad(rows, (0, 9 - rows.shape[1])), normalize=True)
    assert (theirs_ND - texts_ND).abs().max() > 0.01  # what open_clip does to the same texts


def test_a_shorter_context_of_padded_texts_is_transformers(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = begun(folders["siglip"], tmp_path, "model.text.context_length=8")  # `pad` follows
    assert model.config.text.pad == 8
    tokenizer = AutoTokenizer.from_pretrained(folders["siglip"])
    ids = tokenizer(SHORT, padding="max_length", truncation=True, max_length=8, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        output = AutoModel.from_pretrained(folders["siglip"]).eval().get_text_features(input_ids=ids)
    expected_ND = functional.normalize(output.pooler_output, dim=-1)
    torch.testing.assert_close(model.encode_text(SHORT), expected_ND, atol=1e-5, rtol=0)


def test_texts_cannot_be_longer_than_the_positions(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"has positions for texts of 22 tokens, fewer than model.text.context_length=23"
    ) as caught:
        begun(folders["clip"], tmp_path, "model.text.context_length=23")
    assert "\n" not in str(caught.value)


def test_a_multiplier_above_the_limit_is_said_and_not_clamped(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "siglip"
    folder.mkdir()
    for path in folders["siglip"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"logit_scale": torch.full((1,), math.log(117.3))}, folder / "model.safetensors")
    assert begun(folder, tmp_path).model.max_log_logit_scale > math.log(117.3)
    with pytest.raises(
        InputError, match=r"multiplies similarities by 117.3, .* model.max_logit_scale=100; raise the"
    ) as caught:
        begun(folder, tmp_path, "model.max_logit_scale=100")
    assert "\n" not in str(caught.value)
