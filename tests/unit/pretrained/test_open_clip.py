"""Folders of open_clip, loaded by clipx and by open_clip itself: the same pixels, ids, embeddings and logits."""

import json

import pytest
import torch
from open_clip_models import MODELS, photographs
from safetensors.torch import load_file, save_file

from clipx.errors import InputError
from clipx.pretrained import load

open_clip = pytest.importorskip("open_clip")
CAPTIONS = [
    f"{start} {thing}{end}"
    for start in ("a photo of", "The  RED", "“two” &amp; more:", "naïve schÃ¶n", "<end_of_text> [SEP]")
    for thing in ("cats_and dogs", "x", "日本 tower 🙂", "a very long caption of far too many words " * 3)
    for end in ("", ".", "!?", " — 3.14%", "\n", "'s", "\u200b", " it's", " 9", "…")
]


@pytest.fixture(scope="module")
def pictures():
    return photographs(64)


@pytest.fixture(scope="session")
def folders(open_clip_folder):
    """Of each shape a folder, made when it is asked for."""
    return open_clip_folder


@pytest.mark.parametrize("shape", MODELS)
@torch.no_grad()
def test_it_computes_what_open_clip_computes(folders, pictures, shape):
    folder = folders(shape)
    if shape not in ("gelu", "timm_vit_avg_mlp", "siglip", "bert_mlp"):  # the others differ in few layers
        pictures = pictures[:12]
    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    theirs.eval()
    ours = load(folder)
    pixels_B3SS = torch.stack([preprocess(picture) for picture in pictures])
    squares_BSS3 = torch.stack([ours.preprocess(picture) for picture in pictures])
    assert_near(ours.model.image_tower.normalize(squares_BSS3).permute(0, 3, 1, 2), pixels_B3SS)
    tokens_NL = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    assert_same_ids(ours, tokens_NL)
    image_BD, text_ND = ours.encode_image(squares_BSS3), ours.encode_text(CAPTIONS)
    assert_near(image_BD, theirs.encode_image(pixels_B3SS, normalize=True))
    assert_near(text_ND, theirs.encode_text(tokens_NL, normalize=True))
    logits_BN = ours.logit_scale * image_BD @ text_ND.T
    if ours.model.logit_bias is not None:
        logits_BN = logits_BN + ours.model.logit_bias
    # of numbers up to 100, so also as a share of them
    torch.testing.assert_close(logits_BN, theirs.get_logits(pixels_B3SS, tokens_NL)[0], atol=1e-5, rtol=1e-5)
    assert image_BD.std(dim=0).min() > 1e-4 < text_ND.std(dim=0).min()  # neither tower gives one answer to all


def assert_near(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def assert_same_ids(ours, tokens_NL):
    tokens_T, lengths_N = ours.tokenize(CAPTIONS)
    for caption, row, padded in zip(CAPTIONS, tokens_T.split(lengths_N.tolist()), tokens_NL.tolist(), strict=True):
        assert row.tolist() == padded[: len(row)], repr(caption)
        of_clip = ours.config.text.tokenizer == "clip"
        assert len(row) == len(padded) or row[-1] == 49_407 or (not of_clip and not any(padded[len(row) :]))


def copied(folder, to, weights=None, *, name="open_clip_model.safetensors"):
    """A folder with the same config and other weights."""
    to.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".json":
            (to / file.name).write_bytes(file.read_bytes())
    if weights is not None:
        (save_file if name.endswith(".safetensors") else torch.save)(weights, to / name)
    return to


def weights_of(folder):
    return load_file(folder / "open_clip_model.safetensors")


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("open_clip_pytorch_model.bin", lambda weights: weights),
        ("open_clip_pytorch_model.bin", lambda weights: {"epoch": 3, "name": "run", "state_dict": weights}),
        ("pytorch_model.bin", lambda weights: {f"module.{key}": tensor for key, tensor in weights.items()}),
        ("model.safetensors", lambda weights: weights),
        ("open_clip_model.safetensors", lambda weights: weights | {"logit_scale": weights["logit_scale"].reshape(1)}),
    ],
)
def test_files_of_every_kind_hold_the_same_weights(folders, tmp_path, name, wrap):
    expected = load(folders("gelu")).model.state_dict()
    found = load(copied(folders("gelu"), tmp_path / "copy", wrap(weights_of(folders("gelu"))), name=name))
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.model.state_dict().items())


def test_old_names_and_a_bias_that_nobody_stored_are_taken_as_open_clip_takes_them(folders, tmp_path):
    weights = {name.removeprefix("text."): tensor for name, tensor in weights_of(folders("siglip")).items()}
    del weights["logit_bias"]
    found = load(copied(folders("siglip"), tmp_path / "copy", weights)).model.state_dict()
    expected = load(folders("siglip")).model.state_dict() | {"logit_bias": torch.zeros(1)}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    ids = {"text.transformer.embeddings.position_ids": torch.arange(40)[None]}
    load(copied(folders("bert_none"), tmp_path / "bert", weights_of(folders("bert_none")) | ids))


@pytest.mark.parametrize("shape", ["gelu", "siglip", "bert_mlp"])
def test_weights_that_do_not_fit_are_named_by_open_clips_names(folders, tmp_path, shape):
    weights = weights_of(folders(shape))
    first = min(name for name in weights if name.startswith("visual") and weights[name].ndim == 2)
    more = {f"visual.extra.{number}": torch.zeros(1) for number in range(12)}
    wrong = {name: tensor for name, tensor in weights.items() if name not in (first, "logit_scale")} | more
    with pytest.raises(InputError, match=rf"lack {first}, logit_scale|lack logit_scale, {first}") as raised:
        load(copied(folders(shape), tmp_path / "copy", wrong))
    assert "have no place for visual.extra.0," in str(raised.value)
    assert "and 2 more" in str(raised.value)
    assert "\n" not in str(raised.value)
    cut = weights | {first: weights[first][:-1].clone()}
    with pytest.raises(InputError, match=rf"have another shape of {first} \("):
        load(copied(folders(shape), tmp_path / "cut", cut))


class Opens:
    """Writes a file wherever it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_of_more_than_tensors_is_not_run(folders, tmp_path):
    for content in (Opens(tmp_path / "run"), {"state_dict": Opens(tmp_path / "run")}):
        folder = copied(folders("gelu"), tmp_path / f"copy{type(content).__name__}")
        torch.save(content, folder / "open_clip_pytorch_model.bin")
        with pytest.raises(InputError, match="more than tensors") as raised:
            load(folder)
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("open_clip_model.safetensors", b"short", "cannot be read"),
        ("open_clip_pytorch_model.bin", b"short", "cannot be read"),
        ("open_clip_pytorch_model.bin", b"", "cannot be read"),
        ("something.txt", b"", "no weights"),
    ],
)
def test_broken_files_are_bad_input(folders, tmp_path, name, content, message):
    folder = copied(folders("gelu"), tmp_path / "copy")
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def test_a_file_of_other_things_is_bad_input(folders, tmp_path):
    for number, content in enumerate(([1, 2], {"a": 1})):
        folder = copied(folders("gelu"), tmp_path / str(number))
        torch.save(content, folder / "open_clip_pytorch_model.bin")
        with pytest.raises(InputError, match=r"tensors"):
            load(folder)


def test_an_encoder_that_is_not_in_the_cache_is_bad_input(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = copied(folders("bert_mlp"), tmp_path / "copy", weights_of(folders("bert_mlp")))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "nobody/no-such-encoder"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="`hf download nobody/no-such-encoder` puts it into the cache") as raised:
        load(folder)
    assert "\n" not in str(raised.value)
