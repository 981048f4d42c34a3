import io
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import encoded, picture, run_config_text, tiny_model_config, tiny_pretrained

import clipx
from clipx.checkpoint.find import find_model
from clipx.checkpoint.state import DataOrderRecord, Progress, RunState
from clipx.checkpoint.store import CheckpointStore
from clipx.checkpoint.tensors import state_of, write_state
from clipx.config.model import HuggingFaceTextConfig
from clipx.data.tokenizer import ClipTokenizer
from clipx.errors import InputError
from clipx.models.clip import build_model
from clipx.pretrained import Pretrained, load, start_from
from clipx.pretrained.stored_model import without_download

TEXTS = ["a photo of a cat", "x"]


@pytest.fixture(scope="module")
def pretrained():
    return tiny_pretrained()


@pytest.fixture(scope="module")
def run_dir(pretrained, tmp_path_factory):
    """A run with checkpoints of steps 1 and 2; step 2's is `pretrained`."""
    run_dir = tmp_path_factory.mktemp("run")
    data_order = DataOrderRecord(
        fingerprint="", num_shards=1, num_samples=9, lanes=1, shuffle_window=1, global_batch_size=2, seed=0
    )
    for step, source in ((1, tiny_pretrained(seed=1)), (2, pretrained)):
        store = CheckpointStore(run_dir / "checkpoints")
        written = write_state(
            store.draft(step), state_of(source.model, torch.optim.AdamW(source.model.parameters())), None
        )
        state = RunState(progress=Progress(step=step), data_order=data_order, wandb_id="")
        store.publish(step, written, state=state, config_text=run_config_text(pretrained.config))
    return run_dir


def assert_same(one, other):
    assert torch.equal(one.encode_text(TEXTS), other.encode_text(TEXTS))
    assert torch.equal(one.encode_image(picture(0)), other.encode_image(picture(0)))


def test_a_run_folder_is_its_newest_checkpoint(run_dir, pretrained):
    loaded = clipx.load(run_dir)
    assert_same(loaded, pretrained)
    assert not loaded.model.training
    assert loaded.config == pretrained.config


def test_a_checkpoint_is_itself(run_dir):
    assert_same(load(str(run_dir / "checkpoints" / "step-00000001")), tiny_pretrained(seed=1))


def test_a_broken_checkpoint_is_passed_over(run_dir, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    (copy / "checkpoints" / "step-00000002" / "config.yaml").write_text("broken")
    assert_same(load(copy), tiny_pretrained(seed=1))
    (copy / "checkpoints" / "step-00000001" / "manifest.json").unlink()
    with pytest.raises(InputError, match="no good checkpoint; all 2 are broken"):
        load(copy)
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    with pytest.raises(InputError, match="no good checkpoint; train until"):
        load(copy)


def test_a_checkpoint_that_is_named_itself_must_be_whole(run_dir, tmp_path):
    copy = tmp_path / "step-00000002"
    shutil.copytree(run_dir / "checkpoints" / copy.name, copy)
    (weights,) = copy.glob("*.distcp")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"step-00000002: the checkpoint is broken \(.*differs from its checksum"):
        load(copy)


def test_what_holds_no_model_is_bad_input(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match=path.name):
            find_model(path)
    (tmp_path / "model.pt").touch()
    with pytest.raises(InputError, match=r"model.pt: is a file"):
        find_model(tmp_path / "model.pt")


def test_pictures_come_alone_as_a_list_or_preprocessed(pretrained):
    images = [picture(i) for i in range(3)]
    together = pretrained.encode_image(images)
    torch.testing.assert_close(pretrained.encode_image(images[1]), together[1:2], atol=1e-6, rtol=0)
    assert torch.equal(pretrained.encode_image(torch.stack([pretrained.preprocess(i) for i in images])), together)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    assert pretrained.preprocess(images[0]).shape == (24, 24, 3)


def test_pictures_are_made_square_as_the_config_says(pretrained):
    image = picture(5, (31, 24))  # 7 pixels too wide
    columns = np.asarray(image)
    assert torch.equal(pretrained.preprocess(image), torch.tensor(columns[:, 4:28]))
    floor = Pretrained(pretrained.model, tiny_model_config(image={"crop": "floor"}))
    assert torch.equal(floor.preprocess(image), torch.tensor(columns[:, 3:27]))
    squash = Pretrained(pretrained.model, tiny_model_config(image={"resize": "squash", "interpolation": "bilinear"}))
    expected = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR))
    assert torch.equal(squash.preprocess(image), torch.tensor(expected))


def test_texts_come_alone_or_as_a_list(pretrained):
    together = pretrained.encode_text(TEXTS)
    torch.testing.assert_close(pretrained.encode_text(TEXTS[1]), together[1:2], atol=1e-6, rtol=0)
    tokens_T, lengths_B = pretrained.tokenize(TEXTS)
    assert int(lengths_B.sum()) == len(tokens_T)
    assert not together.requires_grad


def test_many_are_encoded_in_parts_and_keep_their_order(pretrained, monkeypatch):
    images = torch.stack([pretrained.preprocess(picture(i)) for i in range(7)])
    texts = [" ".join(TEXTS[:1] * (1 + 5 * i % 7)) for i in range(7)]
    wholes = pretrained.encode_image(images), pretrained.encode_text(texts)
    sizes = []
    for name in ("encode_image", "encode_text"):
        encode = getattr(pretrained.model, name)

        def counted(first, *rest, encode=encode, **options):
            sizes.append(len(rest[0] if rest else first))
            return encode(first, *rest, **options)

        monkeypatch.setattr(pretrained.model, name, counted)
    monkeypatch.setattr("clipx.pretrained.model._AT_ONCE", 3)
    torch.testing.assert_close(pretrained.encode_image(images), wholes[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(pretrained.encode_text(texts), wholes[1], atol=1e-6, rtol=0)
    assert sizes == [3, 3, 1] * 2
    sizes.clear()
    shard_of_it = Pretrained(pretrained.model, pretrained.config, tokenizer=pretrained.tokenizer, in_parts=False)
    shard_of_it.encode_image(images)
    shard_of_it.encode_text(texts)
    assert sizes == [7, 7]


def test_encoded_pictures_become_squares_by_either_decoder(pretrained, monkeypatch):
    data = encoded(picture(6, (31, 40)), "jpeg")
    image = Image.open(io.BytesIO(data))
    assert torch.equal(pretrained.pixels(data), pretrained.preprocess(image))
    monkeypatch.setattr("clipx.data.transforms.decode_any", None)  # Pillow's way
    assert (pretrained.pixels(data, decode="fast").int() - pretrained.preprocess(image).int()).abs().max() <= 2


def test_a_text_alone_is_one_text(pretrained):
    tokens_T, lengths_B = pretrained.tokenize("hello")
    assert lengths_B.tolist() == [3] == [len(tokens_T)]


@pytest.mark.parametrize("texts", [[], 5, [b"x"], b"x", ["x", None], None])
def test_what_is_no_text_is_bad_input(pretrained, texts):
    for call in (pretrained.tokenize, pretrained.encode_text):
        with pytest.raises(InputError, match="text"):
            call(texts)


@pytest.mark.parametrize(
    "images",
    [
        [],
        "cat.jpg",
        Path("cat.jpg"),
        [Path("cat.jpg")],
        None,
        torch.zeros(1, 24, 24, 3),
        torch.zeros(24, 24, 3, dtype=torch.uint8),
        torch.zeros(1, 3, 24, 24, dtype=torch.uint8),
        torch.zeros(1, 23, 24, 3, dtype=torch.uint8),
        torch.zeros(0, 24, 24, 3, dtype=torch.uint8),
        torch.zeros((), dtype=torch.uint8),
    ],
)
def test_what_is_no_picture_is_bad_input(pretrained, images):
    with pytest.raises(InputError, match="picture") as raised:
        pretrained.encode_image(images)
    assert "\n" not in str(raised.value)


def test_a_model_in_training_is_evaluated_and_put_back():
    config = tiny_model_config(image={"patch_drop": 0.5})
    pretrained = tiny_pretrained(config)
    expected = pretrained.encode_image(picture(0))
    pretrained.model.train()
    assert torch.equal(pretrained.encode_image(picture(0)), expected)
    assert all(module.training for module in pretrained.model.modules())


def test_logit_scale_is_the_multiplier(pretrained):
    assert pretrained.logit_scale == pytest.approx(float(pretrained.model.log_logit_scale.detach().exp()))


def test_the_tokenizer_may_be_given(pretrained):
    own = ClipTokenizer(16)
    assert Pretrained(pretrained.model, pretrained.config, tokenizer=own).tokenizer is own


def test_loading_needs_none_of_the_weights_that_training_started_from():
    config = tiny_model_config(image={"pretrained": "gone.safetensors"})
    config = replace(config, text=HuggingFaceTextConfig(name="any"))
    stripped = without_download(config)
    assert stripped.image.pretrained is False
    assert isinstance(stripped.text, HuggingFaceTextConfig)
    assert stripped.text.pretrained is False


def begin(path, config, *, tokenizer=None, anyway=False):
    """A new model with the weights of the stored one."""
    tokenizer = ClipTokenizer(config.text.context_length) if tokenizer is None else tokenizer
    model = build_model(config, vocab_size=tokenizer.vocab_size, seed=3)
    start_from(path, model, config=config, tokenizer=tokenizer, anyway=anyway)
    return model


def test_another_run_starts_from_stored_weights(run_dir, pretrained):
    model = begin(run_dir, pretrained.config)
    stored = pretrained.model.state_dict()
    assert all(value.equal(stored[name]) for name, value in model.state_dict().items())


def test_positions_are_fitted_to_another_image_size_and_a_shorter_context(run_dir, pretrained):
    config = tiny_model_config(image={"image_size": 40}, text={"context_length": 9})
    model = begin(run_dir, config)
    ours, stored = model.state_dict(), pretrained.model.state_dict()
    changed = {name for name, value in ours.items() if value.shape != stored[name].shape}
    assert changed == {"image_tower.trunk.pos_embed", "text_tower.position_embedding.weight"}
    assert ours["text_tower.position_embedding.weight"].equal(stored["text_tower.position_embedding.weight"][:9])
    image, before = ours["image_tower.trunk.pos_embed"], stored["image_tower.trunk.pos_embed"]
    assert image[:, 0].equal(before[:, 0])  # the class token's
    torch.testing.assert_close(image[:, 1:].mean(1), before[:, 1:].mean(1), atol=0.05, rtol=0)


def test_a_start_from_another_architecture_is_refused(run_dir):
    config = tiny_model_config(text={"layers": 4})
    with pytest.raises(InputError, match=r"trained in another model: model.text.layers: 3 -> 4; set `model` as it was"):
        begin(run_dir, config)
    with pytest.raises(InputError, match=r"another architecture than `model`: text_tower.blocks.3.*and 11 more differ"):
        begin(run_dir, config, anyway=True)


OPTIONS = tiny_model_config().image.options
ANOTHER = {
    "model.image.options.act_layer: None -> quick_gelu": {"image": {"options": {**OPTIONS, "act_layer": "quick_gelu"}}},
    "model.image.options.num_heads: 2 -> 4": {"image": {"options": {**OPTIONS, "num_heads": 4}}},
    "model.image.options.global_pool: None -> avg": {
        "image": {"options": {**OPTIONS, "global_pool": "avg", "fc_norm": False}}
    },
    "model.image.name: vit_base_patch32_clip_224 -> vit_base_patch32_clip_quickgelu_224": {
        "image": {"name": "vit_base_patch32_clip_quickgelu_224"}
    },
    "model.image.std: (0.2, 0.25, 0.3) -> (0.2, 0.2, 0.2)": {"image": {"std": (0.2, 0.2, 0.2)}},
    "model.text.activation: gelu -> quick_gelu": {"text": {"activation": "quick_gelu"}},
    "model.text.heads: 4 -> 2; model.text.activation": {"text": {"heads": 2, "activation": "quick_gelu"}},
}


@pytest.mark.parametrize("message", ANOTHER)
def test_weights_of_the_same_shapes_in_another_function_need_a_consent(run_dir, pretrained, message, caplog):
    config = tiny_model_config(**ANOTHER[message])
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        begin(run_dir, config)
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING):
        model = begin(run_dir, config, anyway=True)
    assert message in caplog.text
    stored = pretrained.model.state_dict()
    assert all(value.equal(stored[name]) for name, value in model.state_dict().items())


def test_what_is_only_spelt_or_trained_differently_is_the_same_model(run_dir, pretrained):
    dropped = {"drop_path_rate": 0.1, "attn_drop_rate": 0.1, "proj_drop_rate": 0.1}
    image = {
        "name": "vit_base_patch16_clip_384.laion2b_ft_in12k_in1k",
        "patch_drop": 0.5,
        "options": {**OPTIONS, **dropped},
    }
    config = replace(tiny_model_config(image=image), init_logit_scale=5.0, max_logit_scale=50.0, init_logit_bias=-1.0)
    model = begin(run_dir, config)
    assert torch.equal(model.log_logit_scale, pretrained.model.log_logit_scale)


class Renamed(ClipTokenizer):
    """CLIP's, with another id for every word."""

    def encode(self, texts):
        tokens, lengths = super().encode(texts)
        return (tokens + 1) % self.vocab_size, lengths


def test_another_tokenizer_of_the_same_size_needs_a_consent(run_dir, pretrained):
    with pytest.raises(InputError, match=r"trained in another model: model.text.tokenizer: clip -> clip; set"):
        begin(run_dir, pretrained.config, tokenizer=Renamed(16))
    begin(run_dir, pretrained.config, tokenizer=Renamed(16), anyway=True)
