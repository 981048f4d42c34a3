"""Every key of open_clip's config is read, passed over, or refused by its name."""

import json
import subprocess
import sys

import pytest
from open_clip_models import MODELS, SIGLIP_TEXT, TEXT, VISION

from clipx.config.model import HuggingFaceTextConfig, TransformerTextConfig
from clipx.errors import InputError
from clipx.pretrained.open_clip_config import read_config

PLAIN = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}


def written(folder, model, preprocess=None):
    content = {"model_cfg": model} | ({} if preprocess is None else {"preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


def test_nothing_said_is_what_open_clip_takes(tmp_path):
    config = read_config(written(tmp_path, {"embed_dim": 512, "vision_cfg": {}, "text_cfg": {}}))
    assert (config.image.image_size, config.image.resize, config.image.interpolation) == (224, "shortest", "bicubic")
    assert config.image.mean == (0.48145466, 0.4578275, 0.40821073)
    sizes = {"embed_dim": 768, "depth": 12, "num_heads": 12, "patch_size": 16, "mlp_ratio": 4.0}
    assert config.image.options == sizes
    text = TransformerTextConfig(projection="linear")
    assert config.text == text
    assert (text.width, text.layers, text.heads, text.context_length) == (512, 12, 8, 77)


def test_a_siglip_is_read(tmp_path):
    model = MODELS["siglip"] | {"text_cfg": SIGLIP_TEXT}
    preprocess = model.pop("preprocess_cfg")
    config = read_config(written(tmp_path, model, preprocess))
    assert config.image.options == {"global_pool": "map"}
    assert (config.image.projection, config.image.resize, config.image.interpolation) == ("none", "squash", "bilinear")
    text = config.text
    assert isinstance(text, TransformerTextConfig)
    assert (text.causal, text.pool, text.pad, text.bias, text.eps) == (False, "last", 16, True, 1e-6)
    assert (text.activation, text.cleaning, text.tokenizer) == ("gelu_tanh", "canonicalize", "somebody/tokenizer")
    assert (text.vocab_size, config.init_logit_bias) == (420, -10.0)


def test_tokenizer_and_encoder_are_those_of_the_folder_wherever_it_is(tmp_path):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer.json").touch()
    text = {"hf_model_name": "/gone/encoder", "hf_tokenizer_name": "a/b", "hf_proj_type": None}
    config = read_config(written(tmp_path, PLAIN | {"text_cfg": text}))
    expected = HuggingFaceTextConfig(
        name=str(tmp_path / "encoder"),
        tokenizer=str(tmp_path),
        cleaning="whitespace",
        pool="mean",
        projection="none",
        pretrained=False,
    )
    assert config.text == expected
    (tmp_path / "encoder" / "config.json").unlink()
    (tmp_path / "tokenizer.json").unlink()
    gone = read_config(tmp_path).text
    assert (gone.name, gone.tokenizer) == ("/gone/encoder", "a/b")


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_cfg": VISION | {"patch_dropout": 0.5, "pos_embed_type": "sin_cos_2d", "attn_pooler_heads": 3}},
        {"vision_cfg": VISION | {"timm_model_name": "", "timm_pool": "abs_attn", "timm_drop": 0.1}},
        {"vision_cfg": VISION | {"block_type": "custom", "image_size": [32, 32], "patch_size": [8, 8]}},
        {"text_cfg": TEXT | {"pad_id": 3, "hf_proj_type": "mlp", "tokenizer_kwargs": None, "block_type": "default"}},
        {"text_cfg": TEXT | {"pool_type": "eos", "eos_id": 49407, "final_ln_after_pool": True}},
        {"init_logit_scale": 2.0, "nonscalar_logit_scale": True, "custom_text": True},
    ],
)
def test_what_changes_nothing_in_evaluation_is_passed_over(tmp_path, changes):
    for name in ("plain", "changed"):
        (tmp_path / name).mkdir()
    plain = read_config(written(tmp_path / "plain", PLAIN))
    assert read_config(written(tmp_path / "changed", PLAIN | changes, {"size": 99, "fill_color": 7})) == plain


VISION_REFUSED = {
    "no_ln_pre": True,
    "attentional_pool": True,
    "pool_type": "none",
    "output_tokens": True,
    "qk_norm": True,
    "scale_fc": True,
    "layers": [3, 4, 6, 3],
    "image_size": [32, 64],
    "width": "wide",
    "mlp_ratio": 0,
    "block_type": "new",
    "norm_kwargs": {"bias": False},
    "act_kwargs": {"inplace": True},
    "a_key_of_tomorrow": 1,
}
TIMM_REFUSED = {"timm_pool": "rot_attn", "timm_proj_bias": True, "timm_proj": "deep"}
TEXT_REFUSED = {
    "embed_cls": True,
    "ls_init_value": 0.1,
    "pool_type": "first",
    "no_causal_mask": True,
    "proj_type": "mlp",
    "scaled_cosine_attn": True,
    "tokenizer_mode": "clips",
    "eos_id": None,
    "tokenizer_kwargs": {"reduction_mask": "random"},
    "context_length": True,
}
BERT_REFUSED = {
    "hf_pooler_type": "max_pooler",
    "hf_proj_type": "deep",
    "hf_tokenizer_name": "",
    "tokenizer_kwargs": {"strip_sep_token": True},
}
REFUSED = [
    *((("vision_cfg", VISION | {key: value}), key) for key, value in VISION_REFUSED.items()),
    *((("vision_cfg", {"timm_model_name": "resnet18"} | {key: value}), key) for key, value in TIMM_REFUSED.items()),
    *((("text_cfg", TEXT | {key: value}), key) for key, value in TEXT_REFUSED.items() if key != "eos_id"),
    (("text_cfg", TEXT | {"pool_type": "eos"}), "eos_id"),
    (("text_cfg", TEXT | {"hf_tokenizer_name": "a/b"}), "pool_type"),
    *(
        (("text_cfg", {"hf_model_name": "a/b", "hf_tokenizer_name": "a/b"} | {key: value}), key)
        for key, value in BERT_REFUSED.items()
    ),
    (("multimodal_cfg", {"width": 8}), "multimodal_cfg"),
    (("quick_gelu", "yes"), "quick_gelu"),
    (("embed_dim", None), "embed_dim"),
    (("vision_cfg", None), "vision_cfg"),
    (("text_cfg", [1]), "text_cfg"),
    (("a_key_of_tomorrow", 1), "a_key_of_tomorrow"),
]


@pytest.mark.parametrize(("change", "named"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_would_compute_something_else_is_refused_by_name(tmp_path, change, named):
    key, value = change
    with pytest.raises(InputError, match=named) as raised:
        read_config(written(tmp_path, PLAIN | {key: value}))
    assert "\n" not in str(raised.value)
    assert "open_clip_config.json" in str(raised.value)


@pytest.mark.parametrize(
    ("preprocess", "named"),
    [
        ({"resize_mode": "longest"}, 'preprocess_cfg.resize_mode="longest"'),
        ({"interpolation": "nearest"}, "preprocess_cfg.interpolation"),
        ({"mode": "L"}, "preprocess_cfg.mode"),
        ({"crop": 3}, "crop"),
    ],
)
def test_preprocessing_of_another_kind_is_refused_by_name(tmp_path, preprocess, named):
    with pytest.raises(InputError, match=named):
        read_config(written(tmp_path, PLAIN, preprocess))


def test_a_pooling_layer_of_transformers_is_refused(tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    text = {"hf_model_name": str(tmp_path / "bert"), "hf_tokenizer_name": "a/b", "hf_pooler_type": None}
    for pooler in (None, "cls_pooler"):
        with pytest.raises(InputError, match=r"hf_pooler_type=.*a bert pools with"):
            read_config(written(tmp_path, PLAIN | {"text_cfg": text | {"hf_pooler_type": pooler}}))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model_cfg": 3}', "\xff"])
def test_another_file_is_bad_input_in_one_line(tmp_path, content):
    (tmp_path / "open_clip_config.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"open_clip_config\.json") as raised:
        read_config(tmp_path)
    assert "\n" not in str(raised.value)


def test_it_needs_no_torch(tmp_path):
    written(tmp_path, PLAIN)
    program = (
        "import sys; from pathlib import Path; from clipx.pretrained.open_clip import read_config;"
        f"read_config(Path({str(tmp_path)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
