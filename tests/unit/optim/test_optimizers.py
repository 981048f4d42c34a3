import torch
from torch import nn

from clipx.config.optim import AdamWConfig
from clipx.optim.optimizers import build_optimizer, set_learning_rate
from clipx.optim.param_groups import decay_groups


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.class_token = nn.Parameter(torch.randn(1, 1, 3))
        self.positions = nn.Parameter(torch.randn(1, 5, 3))
        self.log_logit_scale = nn.Parameter(torch.zeros(1))
        self.locked = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def test_only_matrices_and_embeddings_decay() -> None:
    model = Small()
    decayed, others = decay_groups(model, 0.2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"linear.weight", "positions"}
    assert {names[id(p)] for p in others["params"]} == {
        "linear.bias",
        "norm.weight",
        "norm.bias",
        "class_token",
        "log_logit_scale",
    }
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.2, 0.0)


def test_found_inf_leaves_parameters_moments_and_step_count_alone() -> None:
    model = Small()
    optimizer = build_optimizer(AdamWConfig(lr=0.1), model)
    model.linear(torch.ones(2, 4)).sum().backward()
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(int(state["step"]) == 0 and not state["exp_avg"].any() for state in optimizer.state.values())
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert not torch.equal(before[3], model.linear.weight)


def test_learning_rate_reaches_every_group() -> None:
    optimizer = build_optimizer(AdamWConfig(), Small())
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
