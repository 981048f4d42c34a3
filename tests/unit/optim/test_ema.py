from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from clipx.optim.ema import Ema, ema_decay


def model_of(seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).to(dtype)


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_decay_grows_from_a_tenth_to_its_value() -> None:
    assert [ema_decay(step, decay=0.75) for step in (0, 8, 25, 26, 10**6)] == [0.1, 0.5, 26 / 35, 0.75, 0.75]


def test_equals_a_plain_loop_and_leaves_bad_steps_out() -> None:
    model = model_of(0, torch.float64)
    ema, wanted = Ema(model, decay=0.5), values(model)
    for step in range(20):
        change(model)
        good = step % 4 != 2
        ema.update(torch.tensor(good), step=step)
        if good:
            decay = min(0.5, (1 + step) / (10 + step))
            wanted = [decay * a + (1 - decay) * w for a, w in zip(wanted, values(model), strict=True)]
    for average, expected in zip(ema.state_dict().values(), wanted, strict=True):
        torch.testing.assert_close(average, expected, rtol=1e-13, atol=1e-13)


def test_swapped_and_back_bit_for_bit_also_after_an_error() -> None:
    model = model_of(0)
    ema = Ema(model, decay=0.5)
    change(model)
    trained, averaged = values(model), [average.clone() for average in ema.state_dict().values()]
    assert not equal(trained, averaged)

    def evaluate() -> None:
        with ema.swapped():
            assert equal(values(model), averaged)
            assert equal(list(ema.state_dict().values()), trained)
            raise KeyError

    with pytest.raises(KeyError):
        evaluate()
    assert equal(values(model), trained)
    assert equal(list(ema.state_dict().values()), averaged)


def test_optimizers_go_on_with_the_same_parameters() -> None:
    model = model_of(0)
    ema = Ema(model, decay=0.5)
    before = list(model.parameters())
    with ema.swapped():
        pass
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_is_saved_by_name_and_loaded_in_place(tmp_path: Path) -> None:
    model = model_of(0)
    ema = Ema(model, decay=0.5)
    change(model)
    ema.update(torch.tensor(True), step=5)
    assert list(ema.state_dict()) == [name for name, _ in model.named_parameters()]
    save({"ema": ema.state_dict()}, checkpoint_id=tmp_path)
    other = Ema(model_of(1), decay=0.5)
    load({"ema": other.state_dict()}, checkpoint_id=tmp_path)
    assert equal(list(other.state_dict().values()), list(ema.state_dict().values()))
    third = Ema(model_of(2), decay=0.5)
    third.load_state_dict(other.state_dict())
    assert equal(list(third.state_dict().values()), list(ema.state_dict().values()))
