"""A config whose model is that of `start_from`, or lies over it."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_clip import run_config_text, tiny_model_config
from transformers import AutoTokenizer
from transformers_folders import siglip_folder

import clipx
from clipx.checkpoint.find import find_config
from clipx.config.load import dump_config
from clipx.config.model import HuggingFaceTextConfig, ModelConfig
from clipx.data.tokenizer import build_tokenizer
from clipx.errors import InputError
from clipx.pretrained.stored_model import stored_model

CONFIG = """
run_dir: RUN
steps: 10
global_batch_size: 8
data: {train: [a.tar]}
"""


@pytest.fixture
def write(tmp_path: Path):
    """Writes an export's config of a model, and of a run that starts from it; returns the latter's file."""

    def run(model: ModelConfig, extra: str = "") -> Path:
        (tmp_path / "before").mkdir(exist_ok=True)
        (tmp_path / "before" / "clipx_config.yaml").write_text(run_config_text(model))
        path = tmp_path / "c.yaml"
        path.write_text(CONFIG.replace("RUN", str(tmp_path / "run")) + f"start_from: {tmp_path / 'before'}\n{extra}")
        return path

    return run


def test_a_model_that_is_left_out_is_the_one_of_the_start(write) -> None:
    model = tiny_model_config()
    config = clipx.load_config(write(model))
    assert config.model == model
    assert clipx.load_config(write(model, "model:\n")).model == model


def test_keys_of_the_model_lie_over_it(write) -> None:
    model = tiny_model_config()
    given = "model: {image: {image_size: 64}, text: {context_length: 9}, init_logit_bias: -10}"
    assert clipx.load_config(write(model, given), ["model.max_logit_scale=50"]).model == replace(
        model,
        image=replace(model.image, image_size=64),
        text=replace(model.text, context_length=9),
        init_logit_bias=-10.0,
        max_logit_scale=50.0,
    )


def test_padding_follows_a_changed_length(write) -> None:
    model = tiny_model_config(text={"pool": "last", "pad": 16})
    text = clipx.load_config(write(model), ["model.text.context_length=9"]).model.text
    assert (text.context_length, text.pad) == (9, 9)
    with pytest.raises(InputError, match=r"pad=8 is not model.text.context_length=9; set both to one number$"):
        clipx.load_config(write(model), ["model.text.context_length=9", "model.text.pad=8"])
    plain = clipx.load_config(write(tiny_model_config()), ["model.text.context_length=9"]).model.text
    assert plain.pad is None


def test_options_and_towers_are_replaced_whole(write) -> None:
    model = replace(tiny_model_config(), text=HuggingFaceTextConfig(name="some/encoder", context_length=12))
    merged = clipx.load_config(write(model, "model: {image: {options: {depth: 1}}, text: {context_length: 9}}")).model
    assert merged.image.options == {"depth": 1}
    assert merged.text == HuggingFaceTextConfig(name="some/encoder", context_length=9, pretrained=False)
    assert clipx.load_config(write(model), ["model.text={type: transformer, width: 64}"]).model.text.width == 64


def test_a_whole_model_stays_as_it_is(write) -> None:
    config = clipx.load_config(write(tiny_model_config(), "model: {image: {name: vit_base_patch32_clip_224}}"))
    assert config.model == ModelConfig(image=replace(config.model.image, name="vit_base_patch32_clip_224"))
    assert config.model.text.width == 512


def test_null_takes_back_what_a_file_before_has_said(write) -> None:
    model = tiny_model_config()
    path = write(model)
    (over := path.with_name("over.yaml")).write_text("model: {image: {patch_drop: 0.5}}")
    (none := path.with_name("none.yaml")).write_text("model: null")
    assert clipx.load_config(["tiny", path, none]).model == model
    assert clipx.load_config(["tiny", path, none, over]).model == replace(
        model, image=replace(model.image, patch_drop=0.5)
    )
    assert clipx.load_config(["tiny", path]).model.embed_dim != model.embed_dim


def test_weights_are_not_fetched_that_the_start_replaces(write) -> None:
    model = replace(tiny_model_config(image={"pretrained": True}), text=HuggingFaceTextConfig(name="some/encoder"))
    merged = clipx.load_config(write(model)).model
    assert (merged.image.pretrained, merged.text.pretrained) == (False, False)


def test_a_run_that_goes_on_needs_the_start_no_more(write, tmp_path: Path) -> None:
    path = write(tiny_model_config(), "model: {image: {image_size: 48}}")
    config = clipx.load_config(path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
    shutil.rmtree(tmp_path / "before")
    assert clipx.load_config(path) == config
    with pytest.raises(InputError, match=r"^start_from: other: no such folder"):
        clipx.load_config(path, "start_from=other")  # begun from elsewhere
    (tmp_path / "run" / "config.yaml").write_text("broken")
    with pytest.raises(InputError, match=r"^start_from: .*before: no such folder") as caught:
        clipx.load_config(path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_the_start_holds_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    siglip_folder(tmp_path / "theirs")
    monkeypatch.chdir(tmp_path)
    assert stored_model(find_config("theirs")).text.tokenizer == str(tmp_path / "theirs")


def test_a_tokenizer_at_the_hub_is_named_by_its_commit(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--org--na.me"
    snapshot = siglip_folder(repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    text = clipx.load_config(write(tiny_model_config()), ["start_from=hf://org/na.me"]).model.text
    assert text.tokenizer == f"hf://org/na.me@{'a' * 40}"
    ids = AutoTokenizer.from_pretrained(snapshot)(["a cat"], padding="max_length", max_length=12)["input_ids"]
    assert build_tokenizer(text).encode(["a cat"])[0].tolist() == ids[0]


def test_what_is_wrong_is_said_by_its_key(write) -> None:
    with pytest.raises(
        InputError, match=r"^model.text.contxt_length=9: unknown key; the nearest known is model.text.con"
    ):
        clipx.load_config(write(tiny_model_config(), "model: {text: {contxt_length: 9}}"))
    with pytest.raises(InputError, match=r"model is missing|model=5"):
        clipx.load_config(write(tiny_model_config(), "model: 5"))


def test_every_command_resolves_it_without_torch(write) -> None:
    path = write(tiny_model_config())
    code = (
        "import sys; from clipx.cli.config_files import load_arguments; "
        f"print(load_arguments([{str(path)!r}]).model.embed_dim, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["24", "False"]
