from tiny_clip import CLIP_VOCABULARY, tiny_model_config

from clipx.models.clip import build_model
from clipx.optim.locking import set_locked


def test_a_locked_tower_keeps_its_weights_but_trains_its_projection() -> None:
    model = build_model(tiny_model_config(), vocab_size=CLIP_VOCABULARY, seed=0)
    assert not set_locked(model, frozenset())
    assert set_locked(model, frozenset({"image"}))
    assert not set_locked(model, frozenset({"image"}))
    locked = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert locked == {name for name, _ in model.named_parameters() if name.startswith("image_tower.trunk.")}
    assert set_locked(model, frozenset({"text"}))
    locked = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert "text_tower.token_embedding.weight" in locked
    assert not {"text_tower.projection.weight", "log_logit_scale", "image_tower.trunk.cls_token"} & locked
    assert set_locked(model, frozenset())
    assert all(parameter.requires_grad for parameter in model.parameters())
