"""The fused model: stand-ins for what is absent, and what its towers are made of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_runs import tiny_fit
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clipx.config.fit import FitConfig
from clipx.models.fused import FusedModel, build_fused_model
from clipx.types import Batch

VOCABULARY = 100
FUSIONS = ("weighted_sum", "concat", "gated", "bilinear", "attention", "late")
IMAGE, TEXT, TABLE = 0, 1, 2


def config_of(*overrides: str) -> FitConfig:
    return tiny_fit(Path("run"), Path("shards"), "encoder.text.vocab_size=100", *overrides)


def model_of(*overrides: str) -> FusedModel:
    model = build_fused_model(config_of(*overrides), vocab_size=VOCABULARY)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.stand_in_MD.normal_(generator=generator)
        model.measured_as(torch.randn(3, 16, generator=generator) / 4, torch.tensor([0.3, 0.2, 5.0]))
    return model.eval()


def batch_of(rows: int = 5, **columns: Tensor) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths_B = torch.arange(rows) % 3 + 3
    return Batch(
        index=3,
        images_IHWC=torch.randint(256, (rows, 32, 32, 3), dtype=torch.uint8, generator=generator),
        tokens_T=torch.randint(VOCABULARY, (int(lengths_B.sum()),), generator=generator),
        lengths_B=lengths_B,
        max_length=5,
        sample_id_I=torch.arange(rows),
        slot_I=torch.arange(rows),
        source_I=torch.zeros(rows, dtype=torch.int64),
        columns={
            "presence_BM": torch.ones(rows, 3),
            "numbers_BK": torch.randn(rows, 1, generator=generator),
            "categories_BC": torch.arange(rows)[:, None] % 3 - 1,
            **columns,
        },
    )


def outputs(model: FusedModel, batch: Batch) -> Tensor:
    return model(batch, seed=0).raw_BO


@pytest.mark.parametrize("stand_in", ["learned", "translated"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_an_absent_input_holds_changes_no_bit(fusion: str, stand_in: str) -> None:
    model = model_of(f"fusion={fusion}", f"absent.stand_in={stand_in}")
    presence_BM = torch.tensor([[0.0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1]])
    batch = batch_of(presence_BM=presence_BM)
    expected = outputs(model, batch)
    others = batch_of(presence_BM=presence_BM)
    others.images_IHWC[[0, 3]] = 255 - others.images_IHWC[[0, 3]]
    starts = [0, *batch.lengths_B.cumsum(0).tolist()]
    for row in (1, 3):
        others.tokens_T[starts[row] : starts[row + 1]] = 7
    others.columns["numbers_BK"][2] = 1e30
    assert torch.equal(outputs(model, others), expected)
    others.columns["presence_BM"][:] = 1
    assert not torch.isclose(outputs(model, others), expected)[:4].all(dim=1).any()


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1e30])
def test_kept_vectors_of_absent_inputs_may_hold_anything(value: float) -> None:
    model = model_of("absent.stand_in=translated")
    presence_BM = torch.tensor([[0.0, 1, 1]]).repeat(5, 1)
    kept = {"image_features_BD": torch.randn(5, 16), "text_features_BD": torch.randn(5, 16)}
    expected = outputs(model, batch_of(presence_BM=presence_BM, **kept))
    kept["image_features_BD"] = torch.full((5, 16), value)
    batch = batch_of(presence_BM=presence_BM, **kept)
    assert torch.equal(outputs(model, batch), expected)
    outputs(model, batch).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


def filled(model: FusedModel, vectors_BMD: Tensor, presence_BM: Tensor) -> Tensor:
    return model._filled(vectors_BMD, presence_BM)


def test_a_translated_picture_is_the_text_moved_by_the_gap() -> None:
    model = model_of("absent.stand_in=translated")
    mean_MD, scale_M = model.mean_MD, model.scale_M
    e_BMD = torch.randn(4, 3, 16)
    presence_BM = torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 1], [1, 1, 1]])
    z_BMD = filled(model, e_BMD, presence_BM)
    moved = e_BMD[0, TEXT] + (mean_MD[IMAGE] - mean_MD[TEXT])
    torch.testing.assert_close(z_BMD[0, IMAGE], (moved - mean_MD[IMAGE]) / scale_M[IMAGE])
    moved = e_BMD[1, IMAGE] + (mean_MD[TEXT] - mean_MD[IMAGE])
    torch.testing.assert_close(z_BMD[1, TEXT], (moved - mean_MD[TEXT]) / scale_M[TEXT])
    for row, place in ((1, TABLE), (2, IMAGE), (2, TEXT)):
        assert torch.equal(z_BMD[row, place], model.stand_in_MD[place])
    torch.testing.assert_close(z_BMD[3], (e_BMD[3] - mean_MD) / scale_M[:, None])
    learned = filled(model_of(), e_BMD, presence_BM)
    assert torch.equal(learned[0, IMAGE], model.stand_in_MD[IMAGE])


def test_the_tables_vectors_are_not_standardised_again() -> None:
    model = model_of()
    assert torch.equal(model.mean_MD[TABLE], torch.zeros(16))
    assert not torch.equal(model.mean_MD[IMAGE], torch.zeros(16))
    assert model.scale_M.tolist() == pytest.approx([0.3, 0.2, 1.0])


def test_fusion_and_heads_compute_in_float32_under_autocast() -> None:
    model = model_of()
    with torch.autocast("cpu", torch.bfloat16):
        half = outputs(model, batch_of())
        kept = {name: torch.randn(5, 16) for name in ("image_features_BD", "text_features_BD")}
        from_kept = outputs(model, batch_of(**kept))
    assert half.dtype == torch.float32
    assert not torch.equal(half, half.bfloat16().float())
    assert torch.equal(from_kept, outputs(model, batch_of(**kept)))


def test_dropout_draws_from_batch_and_slot_in_training_alone() -> None:
    model = model_of("head.dropout=0.5")
    batch = batch_of()
    assert torch.equal(outputs(model, batch), outputs(model, batch))
    model.train()
    dropped = outputs(model, batch)
    assert torch.equal(outputs(model, batch), dropped)
    for other in (replace(batch, index=4), replace(batch, slot_I=batch.slot_I + 1)):
        assert not torch.equal(outputs(model, other), dropped)
    last = torch.cat([outputs(model, piece) for piece in batch.micro_batches(2)])
    torch.testing.assert_close(last, dropped, rtol=0, atol=1e-6)


class NothingFromTheHost(TorchDispatchMode):
    """Forbids a list as an index and a tensor of Python's numbers: a GPU copies both, and the host waits for that."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function.overloadpacket not in (torch.ops.aten.index, torch.ops.aten.lift_fresh)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("stand_in", ["learned", "translated"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_pass_takes_nothing_from_the_host(fusion: str, stand_in: str) -> None:
    model = model_of(f"fusion={fusion}", f"absent.stand_in={stand_in}").train()
    kept = {"image_features_BD": torch.randn(5, 16), "text_features_BD": torch.randn(5, 16)}
    batch = batch_of(**kept)
    with NothingFromTheHost():
        outputs(model, batch).sum().backward()


@pytest.mark.parametrize(
    "part",
    [{"type": "image"}, {"type": "text"}, {"type": "number", "mean": 0, "std": 1}],
    ids=lambda part: part["type"],
)
def test_one_modality_is_enough(part: dict[str, Any]) -> None:
    config: FitConfig = replace(config_of(), inputs={"given": part})  # type: ignore[arg-type]
    model = build_fused_model(config, vocab_size=VOCABULARY).eval()
    assert outputs(model, batch_of(presence_BM=torch.ones(5, 1))).shape == (5, 10)
