"""Folders of transformers' CLIP and SigLIP, which the library itself makes here, against the library."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers_folders import (
    KINDS,
    clip_folder,
    library_results,
    photographs,
    save_clip_processor,
    varied_strings,
)

from clipx.config.model import TransformerTextConfig
from clipx.data.tokenizer import build_tokenizer
from clipx.errors import InputError
from clipx.models.clip import build_model
from clipx.models.vision_tower import build_vision_tower
from clipx.pretrained import Pretrained, load, start_from, timm_names
from clipx.pretrained.huggingface import read_config, read_weights

CLIP_IDS = 529


@pytest.fixture(scope="session")
def folders(transformers_folder: Callable[[str], Path]) -> dict[str, Path]:
    """A folder of each kind; no test changes them."""
    return {kind: transformers_folder(kind) for kind in KINDS}


@pytest.fixture
def clip(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a CLIP that a test may change."""
    return Path(shutil.copytree(folders["clip, quick_gelu"], tmp_path / "clip"))


@pytest.fixture
def siglip(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a SigLIP that a test may change."""
    return Path(shutil.copytree(folders["siglip"], tmp_path / "siglip"))


def change(file: Path, *, section: str | None = None, **values: Any) -> None:
    """Sets keys of a file of JSON; `...` removes one."""
    content = json.loads(file.read_text())
    place = content[section] if section else content
    for key, value in values.items():
        if value is ...:
            place.pop(key)
        else:
            place[key] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_embeddings_and_logits_are_the_librarys(folders: dict[str, Path], kind: str) -> None:
    pictures, texts = photographs(64), varied_strings(200)
    theirs = library_results(folders[kind], pictures, texts)
    ours = load(folders[kind])
    images_BHWC = torch.stack([ours.preprocess(picture) for picture in pictures])
    pixels_B3SS = ours.model.image_tower.normalize(images_BHWC).permute(0, 3, 1, 2)
    image_BD, text_ND = ours.encode_image(images_BHWC), ours.encode_text(texts)
    logits_BN = ours.logit_scale * image_BD @ text_ND.T
    if ours.model.logit_bias is not None:
        logits_BN = logits_BN + ours.model.logit_bias.detach()
    tokens_T, lengths_N = ours.tokenize(texts)
    assert [row.tolist() for row in tokens_T.split(lengths_N.tolist())] == theirs.ids
    for one, other in (
        (pixels_B3SS, theirs.pixels_B3SS),
        (image_BD, theirs.image_BD),
        (text_ND, theirs.text_ND),
        (logits_BN, theirs.logits_BN),
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert float(theirs.logits_BN.std()) > 0.5  # they tell pictures and texts apart


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", ["clip, gelu", "siglip", "siglip 2"])
def test_token_ids_are_the_librarys_on_many_strings(folders: dict[str, Path], kind: str, count: int) -> None:
    from transformers import AutoTokenizer

    texts = varied_strings(count)
    config = read_config(folders[kind]).text
    assert isinstance(config, TransformerTextConfig)
    theirs = AutoTokenizer.from_pretrained(folders[kind])
    padding = "max_length" if config.pad else False
    rows = theirs(texts, truncation=True, max_length=config.context_length, padding=padding)["input_ids"]
    if not config.pad:  # CLIP pools at the first end token
        rows = [row[: row.index(theirs.eos_token_id) + 1] for row in rows]
    tokens_T, lengths_N = build_tokenizer(config).encode(texts)
    assert [row.tolist() for row in tokens_T.split(lengths_N.tolist())] == rows


@pytest.mark.parametrize("kind", ["clip, gelu", "siglip 2"])
def test_every_weight_comes_back_bit_for_bit(folders: dict[str, Path], kind: str) -> None:
    from clipx.models.key_maps.huggingface import CLIP, SIGLIP

    theirs = load_file(folders[kind] / "model.safetensors")
    key_map = CLIP if kind.startswith("clip") else SIGLIP
    back = key_map.to_theirs(load(folders[kind]).model.state_dict())
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_the_config_says_what_the_folder_says(folders: dict[str, Path]) -> None:
    clip, siglip = read_config(folders["clip, quick_gelu"]), read_config(folders["siglip 2"])
    assert (clip.embed_dim, clip.image.image_size, clip.image.crop, clip.image.resize) == (20, 48, "floor", "shortest")
    assert clip.text == TransformerTextConfig(
        width=24,
        layers=3,
        heads=4,
        context_length=22,
        mlp_ratio=80 / 24,
        activation="quick_gelu",
        tokenizer=str(folders["clip, quick_gelu"]),
        vocab_size=CLIP_IDS,
    )
    assert (siglip.embed_dim, siglip.image.projection, siglip.image.interpolation) == (32, "none", "bilinear")
    assert isinstance(siglip.text, TransformerTextConfig)
    assert (siglip.text.causal, siglip.text.pool, siglip.text.pad, siglip.text.bias) == (False, "last", 12, True)
    assert siglip.init_logit_bias == -10


VITS = [
    pytest.param(family, pattern, vit, id=pattern, marks=[pytest.mark.full] if vit.depth > 12 else [])
    for family, table in (("clip", timm_names._CLIP), ("siglip", timm_names._SIGLIP))
    for pattern, vit in table.items()
]  # the deep ones take seconds to build, even without weights


@pytest.mark.parametrize(("family", "pattern", "vit"), VITS)
def test_timm_builds_a_known_model_in_its_sizes(family: Any, pattern: str, vit: Any) -> None:
    from clipx.config.model import TimmImageConfig

    size = timm_names._SIZES.get(pattern, (224,))[-1]
    with torch.device("meta"):
        trunk: Any = build_vision_tower(TimmImageConfig(name=pattern.format(size), image_size=size), embed_dim=8).trunk
    block = trunk.blocks[0]
    activation = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh"}[type(block.mlp.act).__name__]
    sizes = (trunk.patch_embed.patch_size[0], trunk.embed_dim, len(trunk.blocks), block.attn.num_heads)
    assert (*sizes, block.mlp.fc1.out_features, activation) == vit
    assert block.norm1.eps == timm_names.NORM_EPS[family]


def test_a_known_model_has_its_own_name_and_another_says_what_is_other() -> None:
    for family, pattern, vit in (param.values for param in VITS):
        size = timm_names._SIZES.get(pattern, (224,))[-1]
        assert timm_names.timm_vit(family, vit, image_size=size) == (pattern.format(size), {})
        other: Any = "gelu_tanh" if vit.activation == "gelu" else "gelu"
        changed = timm_names.timm_vit(family, vit._replace(activation=other), image_size=size)
        assert changed[1] in ({}, {"act_layer": other})
        deeper = vit._replace(depth=vit.depth + 1)
        assert timm_names.timm_vit(family, deeper, image_size=size)[1]["depth"] == vit.depth + 1


@pytest.mark.parametrize(("hidden", "width"), [(4304, 1152), (80, 24), (49, 20), (7, 3), (1, 1)])
def test_the_ratio_of_channels_gives_them_back(hidden: int, width: int) -> None:
    assert int(width * timm_names.ratio(hidden, width)) == hidden


def rewrite(folder: Path, write: Callable[[dict[str, torch.Tensor]], None]) -> dict[str, torch.Tensor]:
    """Stores a folder's weights in another way, and returns them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write(tensors)
    return tensors


def test_weights_may_be_stored_in_old_ways(clip: Path) -> None:
    expected = load(clip).model.state_dict()

    def write(tensors: dict[str, torch.Tensor]) -> None:
        positions = {"text_model.embeddings.position_ids": torch.arange(22)[None]}
        torch.save(tensors | positions, clip / "pytorch_model.bin")

    rewrite(clip, write)
    stored = load(clip).model.state_dict()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_may_lie_in_parts(siglip: Path, suffix: str) -> None:
    expected = load(siglip).model.state_dict()
    whole = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"

    def write(tensors: dict[str, torch.Tensor]) -> None:
        names = sorted(tensors)
        files = {name: f"part-{number % 2}.{suffix}" for number, name in enumerate(names)}
        for file in set(files.values()):
            part = {name: tensors[name] for name in names if files[name] == file}
            (save_file if suffix == "safetensors" else torch.save)(part, siglip / file)
        (siglip / f"{whole}.index.json").write_text(json.dumps({"weight_map": files}))

    rewrite(siglip, write)
    stored = load(siglip).model.state_dict()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)
    (siglip / f"part-1.{suffix}").unlink()
    with pytest.raises(InputError, match=rf"names 'part-1\.{suffix}', which is no file beside it"):
        load(siglip)
    change(siglip / f"{whole}.index.json", weight_map={"a": f"../part-0.{suffix}"})
    with pytest.raises(InputError, match="which is no file beside it"):
        load(siglip)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_become_float32(siglip: Path, dtype: torch.dtype) -> None:
    def write(tensors: dict[str, torch.Tensor]) -> None:
        save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, siglip / "model.safetensors")

    tensors = rewrite(siglip, write)
    weights = load(siglip).model.state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    ours = weights["text_tower.norm.weight"]
    assert torch.equal(ours, tensors["text_model.final_layer_norm.weight"].to(dtype).float())


class Evil:
    """A pickle that would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_of_more_than_tensors_is_not_run(clip: Path) -> None:
    rewrite(clip, lambda tensors: torch.save(tensors | {"x": Evil(clip / "evil")}, clip / "pytorch_model.bin"))
    with pytest.raises(InputError, match=r"pickle of more than tensors, it names \w+\.mkdir; .* give model"):
        load(clip)
    assert not (clip / "evil").exists()
    torch.save({"epoch": 3}, clip / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds more than tensors, 'epoch' first"):
        load(clip)


def test_what_weights_lack_or_have_more_is_named(siglip: Path) -> None:
    def write(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["vision_model.head.attention.in_proj_bias"]
        tensors["text_model.head.bias"] = torch.zeros(7)
        extra = {f"classifier.{number}": torch.zeros(1) for number in range(12)}
        save_file(tensors | extra, siglip / "model.safetensors")

    rewrite(siglip, write)
    with pytest.raises(InputError) as caught:
        load(siglip)
    message = str(caught.value)
    assert "lack vision_model.head.attention.in_proj_bias and have no place for classifier.0" in message
    assert "and 2 more and have another shape of text_model.head.bias (7 instead of 32)" in message
    assert "\n" not in message
    (siglip / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        load(siglip)
    (siglip / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no weights; there must be model.safetensors or pytorch_model.bin"):
        load(siglip)


WHOLE, TEXT, IMAGE = (("config.json", section) for section in (None, "text_config", "vision_config"))
PICTURES = ("processor_config.json", "image_processor")
REFUSED: dict[str, tuple[tuple[str, str | None], dict[str, Any]]] = {
    r"model_type=bert is no model .* known are clip and siglip": (WHOLE, {"model_type": "bert"}),
    r"siglip2 takes pictures of free resolution": (WHOLE, {"model_type": "siglip2"}),
    r"keys that are not known here: quantization_config": (WHOLE, {"quantization_config": {"bits": 4}}),
    r"text_config\.hidden_act=.gelu_fast. cannot be read": (TEXT, {"hidden_act": "gelu_fast"}),
    r"num_attention_heads=5 cannot be read: it does not divide": (TEXT, {"num_attention_heads": 5}),
    r"eos_token_id=7 cannot be read: the tokenizer .* with 528": (TEXT, {"eos_token_id": 7}),
    r"vision_config\.num_channels=1 cannot": (IMAGE, {"num_channels": 1}),
    r"vision_config\.image_size=\[48, 64\] cannot": (IMAGE, {"image_size": [48, 64]}),
    r"vision_config has keys .*: use_rope": (IMAGE, {"use_rope": True}),
    r"image_processor\.crop_size=.* the model takes 48": (PICTURES, {"crop_size": {"height": 32, "width": 32}}),
    r"image_processor\.size=.*the 48 pixels": (PICTURES, {"size": {"shortest_edge": 64}}),
    r"do_center_crop=false cannot": (PICTURES, {"do_center_crop": False}),
    r"do_rescale=false cannot": (PICTURES, {"do_rescale": False}),
    r"do_resize=false cannot": (PICTURES, {"do_resize": False}),
    r"rescale_factor=0.5 cannot": (PICTURES, {"rescale_factor": 0.5}),
    r"resample=1 cannot": (PICTURES, {"resample": 1}),
    r"image_mean=\[0.5\] cannot": (PICTURES, {"image_mean": [0.5]}),
    r"image_processor_type=.Blip.*clipx has CLIPImage": (PICTURES, {"image_processor_type": "BlipImageProcessor"}),
    r"image_processor has keys .*: do_sharpen": (PICTURES, {"do_sharpen": True}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_clipx_cannot_do_is_refused_by_its_key(clip: Path, message: str) -> None:
    (name, section), values = REFUSED[message]
    change(clip / name, section=section, **values)
    with pytest.raises(InputError, match=message) as caught:
        load(clip)
    assert "\n" not in str(caught.value)


def test_a_siglip_without_head_or_of_two_widths_is_refused(siglip: Path) -> None:
    change(siglip / "config.json", section="text_config", projection_size=24)
    with pytest.raises(InputError, match=r"text_config\.projection_size=24 cannot be read: images have 32 channels"):
        read_config(siglip)
    change(siglip / "config.json", section="vision_config", vision_use_head=False)
    with pytest.raises(InputError, match=r"vision_use_head=false cannot"):
        read_config(siglip)


def test_a_folder_without_its_files_says_which(clip: Path) -> None:
    (clip / "processor_config.json").unlink()
    with pytest.raises(InputError, match=r"neither preprocessor_config.json nor an image_processor in proc"):
        load(clip)
    (clip / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="holds a list, no mapping"):
        load(clip)
    (clip / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        load(clip)


def test_old_preprocessor_files_are_read(clip: Path) -> None:
    expected = read_config(clip).image
    settings = json.loads((clip / "processor_config.json").read_text())["image_processor"]
    settings |= {"feature_extractor_type": "CLIPFeatureExtractor", "size": 48, "crop_size": 48}
    del settings["image_processor_type"]
    (clip / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    (clip / "preprocessor_config.json").write_text(json.dumps(settings))
    assert read_config(clip).image == expected
    (clip / "preprocessor_config.json").write_text('{"size": 48, "crop_size": 48}')
    assert read_config(clip).image == expected  # CLIP's mean and deviation are the library's defaults


def test_a_processor_may_squash_resize_bilinearly_and_not_normalise(clip: Path) -> None:
    save_clip_processor(clip, size={"height": 48, "width": 48}, resample=2, do_normalize=False, do_center_crop=False)
    image = read_config(clip).image
    assert (image.resize, image.interpolation, image.mean, image.std) == ("squash", "bilinear", (0,) * 3, (1,) * 3)
    pictures = photographs(4)
    ours = load(clip)
    pixels = torch.stack([ours.preprocess(picture) for picture in pictures])
    normal = ours.model.image_tower.normalize(pixels).permute(0, 3, 1, 2)
    torch.testing.assert_close(normal, library_results(clip, pictures, ["a"]).pixels_B3SS, atol=1e-6, rtol=0)


def test_old_configs_are_read_as_the_library_reads_them(clip: Path) -> None:
    expected = read_config(clip)
    content = json.loads((clip / "config.json").read_text())
    inner = content["text_config"]
    unread = {"num_hidden_layers": 9, "hidden_size": 512}  # text_config_dict counts
    junk = {"add_cross_attention": False, "bad_words_ids": None, "num_beams": 1, "top_k": 50, "pruned_heads": {}}
    change(clip / "config.json", text_config=inner | unread, text_config_dict=inner | junk)
    change(clip / "config.json", section="text_config_dict", eos_token_id=2, max_position_embeddings=22)
    assert read_config(clip) == expected
    texts = ["a photo", "<|endoftext|> within", "b" * 50]
    theirs = library_results(clip, photographs(1), texts)
    torch.testing.assert_close(load(clip).encode_text(texts), theirs.text_ND, atol=1e-5, rtol=0)


def test_the_shared_space_may_be_said_in_the_towers_alone(clip: Path) -> None:
    change(clip / "config.json", projection_dim=...)
    for tower in ("text_config", "vision_config"):
        change(clip / "config.json", section=tower, projection_dim=20)
    assert read_config(clip).embed_dim == 20


def test_norms_of_another_epsilon_are_kept(clip: Path) -> None:
    change(clip / "config.json", section="vision_config", layer_norm_eps=1e-3)
    change(clip / "config.json", section="text_config", layer_norm_eps=1e-2)
    pictures, texts = photographs(3), ["a photo", "two"]
    theirs, ours = library_results(clip, pictures, texts), load(clip)
    torch.testing.assert_close(ours.encode_image(pictures), theirs.image_BD, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_text(texts), theirs.text_ND, atol=1e-5, rtol=0)


def test_a_clip_may_carry_a_bias_of_its_logits(clip: Path) -> None:
    change(clip / "config.json", logit_bias=-9.75)
    assert read_config(clip).init_logit_bias == -9.75
    bias = load(clip).model.logit_bias
    assert bias is not None
    assert bias.tolist() == [-9.75]


def test_a_tokenizer_of_more_ids_than_the_model_is_refused(clip: Path) -> None:
    def write(tensors: dict[str, torch.Tensor]) -> None:
        name = "text_model.embeddings.token_embedding.weight"
        save_file(tensors | {name: tensors[name][:100].clone()}, clip / "model.safetensors")

    rewrite(clip, write)
    change(clip / "config.json", section="text_config", vocab_size=100)
    with pytest.raises(InputError, match=r"vocab_size=100 is below the 529 ids of the tokenizer"):
        load(clip)


def test_reading_weights_checks_them_against_the_config(siglip: Path) -> None:
    config = read_config(siglip)
    with pytest.raises(InputError, match=r"have no place for text_model\.encoder\.layers\.2\."):
        read_weights(siglip, replace(config, text=replace(config.text, layers=2)))


@pytest.mark.parametrize("kind", ["clip, quick_gelu", "siglip 2"])
def test_a_run_starts_from_a_folder_in_the_same_architecture(folders: dict[str, Path], kind: str) -> None:
    config = read_config(folders[kind])
    tokenizer = build_tokenizer(config.text)
    model = build_model(config, vocab_size=tokenizer.vocab_size, seed=5)
    start_from(folders[kind], model, config=config, tokenizer=tokenizer)
    begun, loaded = Pretrained(model.eval(), config), load(folders[kind])
    pictures, texts = photographs(3), ["a photo of a cat", "two"]
    assert torch.equal(begun.encode_image(pictures), loaded.encode_image(pictures))
    assert torch.equal(begun.encode_text(texts), loaded.encode_text(texts))
    assert (begun.logit_scale, kind.startswith("clip")) == (loaded.logit_scale, begun.model.logit_bias is None)


def test_a_run_may_have_larger_pictures_and_shorter_texts_but_no_longer_ones(folders: dict[str, Path]) -> None:
    folder = folders["clip, gelu"]
    config = read_config(folder)
    longer = replace(config, text=replace(config.text, context_length=23))
    config = replace(config, image=replace(config.image, image_size=64), text=replace(config.text, context_length=18))
    tokenizer = build_tokenizer(config.text)
    model = build_model(config, vocab_size=tokenizer.vocab_size, seed=5)
    start_from(folder, model, config=config, tokenizer=tokenizer)
    texts = ["a photo", "two"]
    begun = Pretrained(model.eval(), config)
    torch.testing.assert_close(begun.encode_text(texts), load(folder).encode_text(texts), atol=1e-6, rtol=0)
    assert begun.encode_image(photographs(2)).shape == (2, 20)
    model = build_model(longer, vocab_size=tokenizer.vocab_size, seed=5)
    with pytest.raises(InputError, match=r"has positions for texts of 22 tokens, fewer than .*context_length=23"):
        start_from(folder, model, config=longer, tokenizer=build_tokenizer(longer.text))


def test_another_activation_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "relu", activation="relu")
    with pytest.raises(InputError, match=r'only "quick_gelu" or "gelu" or "gelu_pytorch_tanh"$'):
        read_config(folder)
