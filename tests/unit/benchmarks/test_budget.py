import csv
from pathlib import Path

import budget
import pytest
import step_traffic
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from traffic import Traffic

from clipx.models.attention.one_tile import one_tile_attention

HALF, FULL = 2, 4  # bytes


def test_products_have_their_operations_and_no_other_bytes() -> None:
    layer, x = nn.Linear(8, 16, bias=False), torch.ones(32, 8, requires_grad=True)
    towards = torch.ones(32, 16)
    with Traffic() as traffic:
        layer(x).backward(towards)
        traffic.finish()
    assert traffic.product_flops == 3 * 2 * 32 * 8 * 16
    assert traffic.launches["products"] == 3
    assert not traffic.bytes


def test_everything_else_has_what_it_reads_and_writes() -> None:
    x = torch.ones(32, 8)
    with Traffic() as traffic:
        y = functional.gelu(x)  # reads one, writes one
        z = (y.view(8, 32).t() + 1).to(torch.bfloat16)  # a view costs nothing
        traffic.finish()
    assert traffic.bytes == {"activations": 2 * x.nbytes, "residuals": 2 * x.nbytes, "casts": x.nbytes + z.nbytes}
    assert traffic.launches["others"] == 3


def test_an_expanded_tensor_counts_with_the_memory_behind_it() -> None:
    row = torch.ones(1, 8)
    with Traffic() as traffic:
        made = row.expand(32, 8) + 1
        traffic.finish()
    assert traffic.bytes == {"residuals": row.nbytes + made.nbytes}


def test_between_products_a_compiler_reads_once_and_writes_what_lives_on() -> None:
    x, weight = torch.ones(32, 8), torch.ones(8, 8)
    with Traffic() as traffic:
        y = functional.gelu(x) + x  # what gelu gives is gone after the sum
        product = y @ weight
        kept = product * 2
        last = kept + 1
        traffic.finish()
    assert traffic.fused_bytes == 2 * x.nbytes + 3 * last.nbytes
    assert traffic.launches["fused"] == 2
    assert sum(traffic.bytes.values()) == (2 + 3 + 2 + 2) * x.nbytes


def test_attention_takes_whole_tiles() -> None:
    q, k, v = (torch.ones(2, 3, length, 64, requires_grad=True) for length in (50, 130, 130))
    with Traffic() as traffic:
        functional.scaled_dot_product_attention(q, k, v).sum().backward()
        traffic.finish()
    one_product = 2 * (2 * 3) * 128 * 256 * 64
    assert traffic.tile_flops == {"forward": 2 * one_product, "backward": 5 * one_product}
    assert traffic.product_flops == 0


def test_attention_in_one_tile_stands_by_itself() -> None:
    """It reads packed queries, keys and values and writes packed gradients, and nothing else."""
    with FakeTensorMode(), Traffic() as traffic:
        qkv_T3HE = torch.empty(2 * 50, 3, 4, 64, dtype=torch.bfloat16, requires_grad=True)
        one_tile_attention(qkv_T3HE, None, longest=50, causal=False).backward(torch.empty(2 * 50, 4, 64))
        traffic.finish()
    assert traffic.one_tile_bytes == {50: (4 + 7) * qkv_T3HE.nbytes / 3}
    assert traffic.launches["attention"] == 2
    assert traffic.flash_bytes == 0
    assert not traffic.tile_flops


def test_copies_of_many_tensors_are_one_cast() -> None:
    weights = [torch.ones(3, 8), torch.ones(8)]
    copies = [torch.empty_like(weight, dtype=torch.bfloat16) for weight in weights]
    with Traffic() as traffic:
        torch._foreach_copy_(copies, weights)
        traffic.finish()
    assert traffic.bytes == {"casts": 32 * (FULL + HALF)}
    assert traffic.launches["others"] == 1


def test_a_convolution_over_pixels_has_two_products() -> None:
    layer = nn.Conv2d(3, 16, kernel_size=4, stride=4, bias=False)
    with FakeTensorMode(allow_non_fake_inputs=True), Traffic() as traffic:
        layer(torch.ones(2, 3, 8, 8)).sum().backward()
    assert traffic.product_flops == 2 * 2 * (2 * 4) * 16 * 48


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    return list(budget.rows_of_model("b32", 2048, beside_open_clip=True))


def find(rows: list[dict[str, object]], **wanted: object) -> dict[str, float]:
    (row,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return row  # type: ignore[return-value]


def test_terms_of_a_step_sum_to_it(rows: list[dict[str, object]]) -> None:
    for row in rows:
        if "of_products_ms" in row:
            assert sum(float(str(row[f"of_{term}_ms"])) for term in budget.TERMS) == pytest.approx(row["ms"])


def test_products_are_a_little_less_than_the_useful_work_at_the_same_rate(rows: list[dict[str, object]]) -> None:
    row = find(rows, mode="floor", gpu="H200", gpus=1)
    useful_ms = row["useful_ms"] * 989.4e12 / budget.RATE
    assert 0.9 * useful_ms < row["of_products_ms"] < useful_ms  # the last block, and pixels without gradient


def test_modes_gpus_and_sides_are_in_order(rows: list[dict[str, object]]) -> None:
    floor, before, eager, compiled = (find(rows, mode=mode, gpu="H200", gpus=1) for mode in budget.MODES)
    assert floor["ms"] < compiled["ms"] < eager["ms"] < before["ms"]
    assert find(rows, mode="eager", gpu="H100", gpus=1)["ms"] > eager["ms"]
    eight = find(rows, mode="eager", gpu="H200", gpus=8)
    assert eight["of_communication_ms"] > 0 == eager["of_communication_ms"]
    assert 7.8 < eight["pairs_per_s"] / eager["pairs_per_s"] < 8
    theirs = find(rows, mode="open_clip", gpu="H200", gpus=1)
    assert find(rows, mode="in turn", gpu="H200")["times_open_clip"] == pytest.approx(theirs["ms"] / eager["ms"])


def test_before_had_flash_attention_casts_in_each_layer_and_pixels_in_turn(rows: list[dict[str, object]]) -> None:
    before, eager = (find(rows, mode=mode, gpu="H200", gpus=1) for mode in ("before", "eager"))
    assert eager["of_products_ms"] == before["of_products_ms"]
    assert eager["of_attention_ms"] < before["of_attention_ms"] / 2  # B/32 has few tokens in both towers
    assert eager["of_casts_ms"] < before["of_casts_ms"]
    assert before["of_pixels_ms"] > 0 == eager["of_pixels_ms"]
    assert eager["host_ms"] < before["host_ms"]


def test_what_stands_between_is_sorted_and_leaves_the_arithmetic_out(rows: list[dict[str, object]]) -> None:
    row = find(rows, mode="eager", gpu="H200", gpus=1)
    terms = budget.what_stands_between(row)
    assert [ms for _, ms in terms] == sorted((ms for _, ms in terms), reverse=True)
    assert sum(ms for _, ms in terms) == pytest.approx(row["ms"] - row["useful_ms"])


def test_open_clips_loss_holds_two_matrices_of_all_pairs() -> None:
    traffic = step_traffic.count_clip_loss(1024, 64)
    assert traffic.product_flops == 6 * 2 * 1024**2 * 64
    softmax, casts = 5 * FULL + FULL, 2 * (FULL + HALF)  # forward 2, backward 3, the targets' gradient 1
    assert sum(traffic.bytes.values()) == pytest.approx(2 * (softmax + casts) * 1024**2, rel=0.05)  # and what is G x d


def test_the_file_has_what_the_plan_for_a_gpu_measures(
    rows: list[dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "CASES", (("b32", 2048, True),))
    monkeypatch.setattr(budget, "rows_of_model", lambda name, batch_size, **_: iter(rows))
    monkeypatch.setattr("sys.argv", ["budget.py", "--out", str(tmp_path)])
    budget.main()
    budget.main()  # predictions are replaced
    with (tmp_path / "budget.csv").open(newline="") as file:
        keys = [(row["what"], row["mode"], row["batch"], row["gpu"], row["gpus"]) for row in csv.DictReader(file)]
    assert len(keys) == len(set(keys))
    assert {("b32", "eager"), ("b32", "in turn"), ("info_nce 512", "triton"), ("l14 cache", "k=8")} <= {
        key[:2] for key in keys
    }
