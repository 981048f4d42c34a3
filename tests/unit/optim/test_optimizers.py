from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config
from torch import Tensor, nn

from clipx.config.optim import (
    AdamWConfig,
    MuonConfig,
    OptimConfig,
    StableAdamWConfig,
    TimmOptimConfig,
    TowerOptimConfig,
)
from clipx.config.schema import RunConfig
from clipx.errors import InputError
from clipx.models.clip import CLIP, build_model
from clipx.optim import from_timm
from clipx.optim.optimizers import build_optimizer, optimizer_bytes, set_learning_rate, takes_found_inf, update

CONFIGS: dict[str, OptimConfig] = {
    "adamw": AdamWConfig(lr=0.1),
    "stable_adamw": StableAdamWConfig(lr=0.1),
    "muon": MuonConfig(lr=0.1),
    **{name: TimmOptimConfig(name=name, lr=0.1) for name in ("lion", "adopt", "lamb")},
    "timm muon": TimmOptimConfig(name="muon", lr=0.1),
}


class Small(nn.Module):
    """The names of CLIP's parts, with every kind of parameter and one that has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.image_tower = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5))
        self.text_tower = nn.Embedding(7, 5)
        self.log_logit_scale = nn.Parameter(torch.zeros(1))
        self.locked = nn.Parameter(torch.ones(4, 4), requires_grad=False)

    def block_lists(self) -> list[list[nn.Module]]:
        return [[self.image_tower], []]

    def forward(self) -> Tensor:
        similar = self.image_tower(torch.arange(12.0).view(2, 6).cos()) @ self.text_tower.weight.T
        return (similar * self.log_logit_scale.exp()).square().sum()


def prepared(config: OptimConfig) -> tuple[Small, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Small()
    return model, build_optimizer(config, model)


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    state = optimizer.state_dict()
    return [*model.state_dict().values(), *[v for s in state["state"].values() for v in s.values()]]


def same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(before, after, strict=True)
    )


def copied(values: list[Any]) -> list[Any]:
    return [value.clone() if isinstance(value, Tensor) else value for value in values]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bad_step_leaves_everything_as_it_was(name: str) -> None:
    model, optimizer = prepared(CONFIGS[name])
    for good in (True, False, True):
        optimizer.zero_grad()
        model().backward()
        if not good:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(torch.nan)
        before = copied(snapshot(model, optimizer))
        update(optimizer, torch.tensor(good))
        after = snapshot(model, optimizer)
        assert same(before, after) != good
        assert all(bool(torch.as_tensor(value).isfinite().all()) for value in after)


def test_a_bad_first_step_counts_for_nothing() -> None:
    for name in ("adamw", "stable_adamw", "muon"):
        (model, optimizer), (other, calm) = prepared(CONFIGS[name]), prepared(CONFIGS[name])
        for good in (False, True):
            optimizer.zero_grad()
            (model() * (1.0 if good else torch.nan)).backward()
            update(optimizer, torch.tensor(good))
        other().backward()
        update(calm, torch.tensor(True))
        assert same(snapshot(model, optimizer), snapshot(other, calm)), name


@pytest.mark.parametrize("name", CONFIGS)
def test_a_parameter_that_is_locked_stays_until_it_is_free(name: str) -> None:
    model, optimizer = prepared(CONFIGS[name])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    model().backward()
    update(optimizer, torch.tensor(True))
    assert torch.equal(model.locked, torch.ones(4, 4))
    assert model.locked not in optimizer.state
    model.locked.requires_grad_(True)
    for _ in range(2):  # ADOPT only looks at the first gradient
        optimizer.zero_grad()
        (model() + model.locked.square().sum()).backward()
        update(optimizer, torch.tensor(True))
    assert (model.locked < 1).all()


class Wrapper:
    """As accelerate's optimizer wrapper: the inner optimizer, and a loss scaler that decides by itself."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.scaler = object()
        self.calls = 0

    def step(self) -> None:
        self.calls += 1


def test_who_decides() -> None:
    decide_on_the_device = {name for name in CONFIGS if takes_found_inf(prepared(CONFIGS[name])[1])}
    assert decide_on_the_device == {"adamw", "stable_adamw", "muon"}
    for name in ("adamw", "lion"):
        wrapper = Wrapper(prepared(CONFIGS[name])[1])
        assert takes_found_inf(wrapper) == (name == "adamw")  # type: ignore[arg-type]
        update(wrapper, torch.tensor(False))  # type: ignore[arg-type]
        assert wrapper.calls == 1  # the scaler must see every step


def test_with_a_loss_scaler_gradients_are_unscaled_once_and_overflows_skipped() -> None:
    for name in ("adamw", "stable_adamw", "muon", "lion"):
        (model, optimizer), (other, plain) = prepared(CONFIGS[name]), prepared(CONFIGS[name])
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for factor in (1.0, torch.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(model()).backward()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            scaler.unscale_(optimizer)
            optimizer.grad_scale = None  # as `update` and accelerate's clipping leave it  # type: ignore[attr-defined]
            before = copied(snapshot(model, optimizer))
            scaler.step(optimizer)
            scaler.update()
            assert same(before, snapshot(model, optimizer)) == (factor != 1.0), name
        for _ in range(2):
            plain.zero_grad()
            other().backward()
            update(plain, torch.tensor(True))
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, msg=name)


def test_learning_rate_reaches_every_group_by_its_share() -> None:
    _, optimizer = prepared(AdamWConfig(text=TowerOptimConfig(lr_scale=0.5)))
    set_learning_rate(optimizer, 0.25)
    assert [(group["lr_scale"], group["lr"]) for group in optimizer.param_groups] == [
        (1, 0.25),
        (1, 0.25),
        (0.5, 0.125),
    ]


def test_timms_muon_orthogonalises_linear_weights_and_nothing_else() -> None:
    model, optimizer = prepared(CONFIGS["timm muon"])
    model().backward()
    optimizer.step()
    by_muon = [name for name, parameter in model.named_parameters() if optimizer.state[parameter].get("use_muon")]
    assert by_muon == ["image_tower.0.weight"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lionn"}, "optim.name=lionn is no optimizer of timm's; nearest: lion"),
        ({"name": "lookahead_adam"}, "is no optimizer of timm's"),
        ({"name": "lion", "options": {"beta": 1}}, "does not work here: .*beta"),
        ({"name": "lion", "options": {"betas": [2.0, 0.9]}}, "does not work here: Invalid beta"),
        ({"name": "lion", "options": {"lr": 1.0}}, "optim.options may not hold lr"),
        ({"name": "adahessian"}, "does not work here"),
    ],
)
def test_what_timm_cannot_do_is_said_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        prepared(TimmOptimConfig(**settings))
    assert "\n" not in str(caught.value)


class Hoarder(torch.optim.SGD):
    """Keeps a list, as timm's kron does (which compiles for half a minute first)."""

    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] |= {"step": 1, "Q": [parameter]}


def test_a_state_that_no_checkpoint_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_timm, "create_optimizer_v2", lambda groups, opt, lr: Hoarder(groups, lr=lr))
    with pytest.raises(InputError, match=r"keeps a state that a checkpoint cannot hold: Q \(list\); choose another"):
        prepared(TimmOptimConfig(name="kron"))


def test_options_reach_the_optimizer_as_yaml_writes_them() -> None:
    _, optimizer = prepared(TimmOptimConfig(name="lion", options={"betas": [0.5, 0.75], "caution": True}))
    assert [(list(group["betas"]), group["caution"]) for group in optimizer.param_groups] == [([0.5, 0.75], True)] * 2


WORDS = 500


def config_and_towers(folder: Path, optimizer: str) -> tuple[RunConfig, CLIP]:
    config = tiny_config(folder / "run", "none.tar", f"optim={optimizer}")
    return config, build_model(config.model, vocab_size=WORDS, seed=0)


@pytest.mark.parametrize(
    "optimizer",
    [
        "{}",
        "{type: stable_adamw}",
        "{type: muon}",
        *(f"{{type: timm, name: {name}}}" for name in ("lion", "adan", "adafactorbv")),
    ],
)
@pytest.mark.parametrize("locked", [False, True])
def test_they_are_those_after_a_real_step(optimizer: str, locked: bool, tmp_path: Path) -> None:
    config, towers = config_and_towers(tmp_path, optimizer)
    towers.image_tower.requires_grad_(not locked)
    reckoned = optimizer_bytes(config.optim, towers)
    for weight in towers.parameters():
        assert weight.grad is None
        weight.grad = torch.ones_like(weight) if weight.requires_grad else None
    steps = build_optimizer(config.optim, towers)
    steps.step()
    states = (value for state in steps.state.values() for value in state.values())
    found = sum(value.nbytes for value in states if torch.is_tensor(value))
    assert reckoned == pytest.approx(found, rel=2e-3)  # but for counts of steps


def test_without_numbers_to_look_at_two_moments_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, towers = config_and_towers(tmp_path, "{type: timm, name: lion}")

    def looks(*_: object) -> None:
        torch.ones(1).item()
        raise ValueError("no such number")

    monkeypatch.setattr("clipx.optim.optimizers.build_optimizer", looks)
    assert optimizer_bytes(config.optim, towers) == 8 * sum(weight.numel() for weight in towers.parameters())
