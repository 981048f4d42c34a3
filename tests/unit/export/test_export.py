import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import encoded, picture, run_config_text, tiny_model_config, tiny_pretrained

from clipx.checkpoint.find import EXPORT_CONFIG
from clipx.errors import InputError, RunError
from clipx.export import export_model, open_clip
from clipx.export import run as export_run
from clipx.export.options import ExportOptions
from clipx.pretrained import load
from clipx.pretrained.open_clip import WEIGHTS as OPEN_CLIP_WEIGHTS

BOTH = ("hf", "open_clip")
TEXTS = ["a photo of a cat", "an owl & a fox, at dusk"]
QUICK = {"image": {"name": "vit_base_patch16_clip_quickgelu_224"}, "text": {"activation": "quick_gelu"}}
ODD = {
    "image": {"image_size": 33, "options": {"embed_dim": 30, "depth": 1, "num_heads": 3, "patch_size": 11}},
    "text": {"width": 18, "heads": 3, "layers": 1, "context_length": 9, "mlp_ratio": 2.45},
}


def trunk_options(**options):
    """Changes of the tiny model to a trunk of another kind under the same name."""
    return {"image": {"options": {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8} | options}}


def stored(folder, config=None):
    """A model, and an export of it that nobody compared, from which `export_model` can start."""
    pytest.importorskip("open_clip")
    pretrained = tiny_pretrained(config)
    folder.mkdir()
    (folder / EXPORT_CONFIG).write_text(run_config_text(pretrained.config))
    open_clip.write(pretrained, folder, ExportOptions())
    return pretrained


@pytest.fixture
def source(tmp_path):
    stored(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A source, and its export for all who load one of both libraries, in a folder that was not there."""
    folder = tmp_path_factory.mktemp("shared")
    stored(folder / "source")
    to = folder / "deep" / "export"
    return folder / "source", to, export_model(folder / "source", to, BOTH)


def assert_is_what_was_trained(source, to, parity):
    assert {row["format"] for row in parity["consumers"].values()} == set(BOTH)
    for row in parity["consumers"].values():
        assert row["checked"]
        assert row["limit"] is None or all(value < 1e-5 for value in row["largest_difference"].values())
    assert json.loads((to / "parity.json").read_text()) == parity
    again, pretrained = load(to), load(source)
    assert again.config == pretrained.config
    assert torch.equal(again.encode_text(TEXTS), pretrained.encode_text(TEXTS))
    assert torch.equal(again.encode_image(picture(0)), pretrained.encode_image(picture(0)))
    assert [path.name for path in to.parent.iterdir()] == ["export"]


def test_all_who_load_it_compute_what_was_trained(export):
    assert_is_what_was_trained(*export)
    assert list(export[2]["consumers"]) == [
        "transformers CLIPModel",
        "transformers CLIPModel, default image backend",
        "transformers CLIPVisionModelWithProjection",
        "transformers CLIPTextModelWithProjection",
        "transformers CLIPVisionModel, last but one hidden state",
        'transformers pipeline("zero-shot-image-classification")',
        "sentence-transformers",
        "open_clip",
    ]


@pytest.mark.usefixtures("whole_models_alone")
@pytest.mark.parametrize("changes", [QUICK, ODD], ids=["quick_gelu", "odd_sizes"])
def test_both_libraries_compute_what_was_trained(tmp_path, changes):
    stored(tmp_path / "source", tiny_model_config(**changes))
    to = tmp_path / "deep" / "export"
    assert_is_what_was_trained(tmp_path / "source", to, export_model(tmp_path / "source", to, BOTH))


def test_the_folder_holds_the_files_of_both_libraries(export):
    assert {path.name for path in export[1].iterdir()} == {
        "README.md",
        "clipx_config.yaml",
        "config.json",
        "model.safetensors",
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "parity.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((export[1] / "config.json").read_text())
    assert config["text_config"]["eos_token_id"] == 49_407
    assert {config[key]["projection_dim"] for key in ("text_config", "vision_config")} == {config["projection_dim"]}


def test_transformers_auto_classes_load_it(export):
    from transformers import AutoModel, AutoProcessor

    source, to, _ = export
    ours = load(source)
    model = AutoModel.from_pretrained(to)
    processor = AutoProcessor.from_pretrained(to, backend="pil")
    image = picture(0, (40, 30))
    inputs = processor(images=image, return_tensors="pt")
    with torch.no_grad():
        features = model.get_image_features(**inputs).pooler_output
    torch.testing.assert_close(features / features.norm(), ours.encode_image(image), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("nobody_of_transformers")
def test_an_earlier_export_is_replaced_and_anything_else_is_not(tmp_path, source):
    to = tmp_path / "export"
    to.mkdir()
    export_model(source, to, ["open_clip"])
    assert not (to / "model.safetensors").exists()
    export_model(to, to, BOTH)
    assert (to / "model.safetensors").exists()
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.txt").write_text("do not lose")
    with pytest.raises(InputError, match=r"precious holds thesis.txt, which no export wrote"):
        export_model(source, other, BOTH)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="is a file"):
        export_model(source, other / "thesis.txt", BOTH)


def test_files_beside_an_earlier_export_are_not_lost(tmp_path, source):
    to = tmp_path / "export"
    for _ in range(2):
        export_model(source, to, ["open_clip"])
    files = json.loads((to / "parity.json").read_text())["files"]
    assert sorted([*files, "parity.json"]) == sorted(path.name for path in to.iterdir())
    (to / "notes.txt").write_text("of mine")
    with pytest.raises(InputError, match=r"export holds notes.txt, which no export wrote; move that away"):
        export_model(source, to, ["open_clip"])
    assert (to / "notes.txt").read_text() == "of mine"


@pytest.mark.parametrize("place", ["file/export", "/proc/export"])
def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path, source, place):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"export cannot be written: .*; check path"):
        export_model(source, tmp_path / place, BOTH)


def test_a_library_that_fails_is_named_in_one_line(tmp_path, source, monkeypatch):
    def fail(*_):
        raise RuntimeError("size mismatch:\n  a\n  b")

    monkeypatch.setattr(open_clip, "CONSUMERS", (replace(open_clip.CONSUMERS[0], outputs=fail),))
    with pytest.raises(RunError, match=r"open_clip_torch .* fails .*RuntimeError: size mismatch: a b.*nothing was"):
        export_model(source, tmp_path / "export", ["open_clip"])
    assert not (tmp_path / "export").exists()


def test_a_difference_ends_the_export_and_leaves_the_earlier_one(tmp_path, source, monkeypatch):
    to = tmp_path / "export"
    export_model(source, to, ["open_clip"])
    before = (to / "parity.json").read_bytes()
    write = open_clip.write

    def write_wrongly(pretrained, folder, options):
        write(pretrained, folder, options)
        weights = load_file(folder / OPEN_CLIP_WEIGHTS)
        weights["visual.proj"] += 0.01
        save_file(weights, folder / OPEN_CLIP_WEIGHTS)

    monkeypatch.setattr(open_clip, "write", write_wrongly)
    with pytest.raises(RunError, match=r"open_clip_torch .*image_embeddings by 0\.\d+.*limit 0\.0001") as raised:
        export_model(source, to, ["open_clip"])
    assert "\n" not in str(raised.value)
    assert "text_embeddings" not in str(raised.value)
    assert (to / "parity.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "source"]


def test_without_open_clip_the_export_says_that_it_was_not_compared(tmp_path, source, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    row = export_model(source, tmp_path / "export", ["open_clip"])["consumers"]["open_clip"]
    assert row["checked"] is False
    assert "open_clip is not installed" in row["reason"]
    assert (tmp_path / "export" / OPEN_CLIP_WEIGHTS).is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image": {"name": "vit_tiny_patch16_224", "options": {}, "image_size": 32}},
            "no LayerNorm before.*vit_tiny_patch16_224",
        ),
        (trunk_options(qk_norm=True), "no plain attention"),
        (trunk_options(reg_tokens=2), "no class token as its only token"),
        (trunk_options(no_embed_class=True), "no position for every patch and the class token"),
        (trunk_options(qkv_bias=False), "no biases in attention"),
        (trunk_options(proj_bias=False), "no biases in attention"),
        (trunk_options(final_norm=False), "no LayerNorm after"),
        (trunk_options(norm_layer="rmsnorm"), "no LayerNorm before"),
        (trunk_options(act_layer="silu"), "no GELU"),
        ({"text": {"activation": "quick_gelu"}}, "one activation"),
    ],
)
def test_other_models_are_refused_before_anything_is_written(tmp_path, changes, message, monkeypatch):
    pretrained = tiny_pretrained(tiny_model_config(**changes))
    source = tmp_path / "source"
    source.mkdir()
    (source / EXPORT_CONFIG).write_text(run_config_text(pretrained.config))
    monkeypatch.setattr(export_run, "load", lambda _path, **_: pretrained)
    with pytest.raises(InputError, match=message):
        export_model(source, tmp_path / "export", ["open_clip"])
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.usefixtures("whole_models_alone")
def test_a_logit_bias_goes_to_both(tmp_path):
    pretrained = stored(tmp_path / "source", replace(tiny_model_config(), init_logit_bias=-10.0))
    consumers = export_model(tmp_path / "source", tmp_path / "export", BOTH)["consumers"]
    for name in ("transformers CLIPModel", "open_clip"):
        assert consumers[name]["largest_difference"]["logits"] < 1e-4
    assert torch.equal(load(tmp_path / "export").model.logit_bias, pretrained.model.logit_bias)


@pytest.mark.parametrize("only", ["image", "text"])
def test_one_tower_alone_is_what_its_consumers_compute(tmp_path, source, only):
    to = tmp_path / "export"
    parity = export_model(source, to, ["hf"], options=ExportOptions(only=only))
    compared = {name for name, row in parity["consumers"].items() if row["checked"]}
    both = {
        "image": {
            "transformers CLIPVisionModelWithProjection",
            "transformers CLIPVisionModel, last but one hidden state",
        },
        "text": {"transformers CLIPTextModelWithProjection"},
    }
    assert compared == both[only]
    prefix = {"image": ("vision_model.", "visual_projection."), "text": ("text_model.", "text_projection.")}[only]
    assert all(name.startswith(prefix) for name in load_file(to / "model.safetensors"))
    assert not (to / EXPORT_CONFIG).exists()


def test_open_clip_has_no_place_for_one_tower(tmp_path, source):
    with pytest.raises(InputError, match=r"--only image: open_clip has no place for one tower alone; give --format hf"):
        export_model(source, tmp_path / "export", BOTH, options=ExportOptions(only="image"))
    assert not (tmp_path / "export").exists()


@pytest.mark.usefixtures("whole_models_alone")
def test_half_precision_is_compared_with_rounded_weights_and_its_cost_is_told(tmp_path, source):
    to = tmp_path / "export"
    parity = export_model(source, to, BOTH, options=ExportOptions(dtype="fp16"))
    assert {str(w.dtype) for w in load_file(to / "model.safetensors").values()} == {"torch.float16"}
    assert {str(w.dtype) for w in load_file(to / OPEN_CLIP_WEIGHTS).values()} == {"torch.float16"}
    bound = [row for row in parity["consumers"].values() if row["limit"] is not None]
    assert all(value < 1e-5 for row in bound for value in row["largest_difference"].values())
    assert parity["half_precision"]["largest_difference"]["image_embeddings"] > 1e-6
    rounded = load(to).encode_text(TEXTS)
    assert (rounded * load(source).encode_text(TEXTS)).sum(dim=1).min() > 0.9999


@pytest.mark.usefixtures("whole_models_alone")
def test_pictures_that_transformers_cuts_aside_are_told_and_hold_for_open_clip(tmp_path, source):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for rest in range(4):
        (folder / f"{rest}.png").write_bytes(encoded(picture(rest, (24 + rest, 24))))
    parity = export_model(source, tmp_path / "export", BOTH, pictures=str(folder))
    assert parity["compared_on"] == "pictures, and texts of clipx"  # where they lie is nobody's business
    assert str(tmp_path) not in (tmp_path / "export" / "README.md").read_text()
    consumers = parity["consumers"]
    row = consumers["transformers CLIPModel"]
    assert (row["pictures"], row["same_crop"], row["other_crop"]["pictures"]) == (4, 0.75, 1)
    assert row["other_crop"]["largest_difference"] > 1e-4
    assert consumers["open_clip"]["same_crop"] == 1.0


@pytest.mark.usefixtures("whole_models_alone")
def test_a_model_that_floors_its_crop_agrees_with_transformers_everywhere(tmp_path):
    stored(tmp_path / "source", tiny_model_config(image={"crop": "floor"}))
    consumers = export_model(tmp_path / "source", tmp_path / "export", BOTH)["consumers"]
    assert consumers["transformers CLIPModel"]["same_crop"] == 1.0
    assert consumers["open_clip"]["other_crop"]["pictures"] > 0


@pytest.mark.parametrize("formats", [[], ["tflite"], ["hf", "nonsense"]])
def test_an_unknown_format_is_bad_input(tmp_path, source, formats):
    with pytest.raises(InputError, match="known are hf, open_clip, onnx, pt2"):
        export_model(source, tmp_path / "export", formats)


def test_weights_that_do_not_fit_the_config_are_bad_input(tmp_path, source):
    config = run_config_text(tiny_model_config(text={"layers": 1}))
    (source / EXPORT_CONFIG).write_text(config)
    with pytest.raises(InputError, match="do not fit the config: they have no place for") as raised:
        load(source)
    assert "\n" not in str(raised.value)
    (source / OPEN_CLIP_WEIGHTS).write_bytes(b"short")
    with pytest.raises(InputError, match="cannot be read"):
        load(source)
    (source / OPEN_CLIP_WEIGHTS).unlink()
    with pytest.raises(InputError, match="export it again"):
        load(source)
