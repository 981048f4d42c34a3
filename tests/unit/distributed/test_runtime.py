from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
import torch.distributed as dist
from tiny import tiny_config

from clipx.distributed.runtime import _check_fp8, start_runtime
from clipx.errors import InputError, RunError

TORCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
GPU_RULES = {
    "precision=fp16": "precision=fp16 needs a GPU",
    "precision=fp8": "precision=fp8 needs a GPU of compute capability 8.9",
    "parallel={type: fsdp2, cpu_offload: true}": "parallel.cpu_offload=true",
}


@pytest.mark.parametrize("override", GPU_RULES)
def test_what_needs_a_gpu_says_so(override: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "none.tar", override)
    with (
        patch("torch.cuda.is_available", return_value=False),
        pytest.raises(InputError, match=GPU_RULES[override]),
        start_runtime(config),
    ):
        pass


@pytest.mark.parametrize(
    ("capability", "installed", "message"),
    [
        ((8, 0), True, "8.9 or higher .*, and here is A100, 8.0; use bf16"),
        ((9, 0), False, "needs torchao, which is not installed"),
        ((8, 9), True, None),
    ],
)
def test_fp8_wants_the_gpu_and_torchao(capability: tuple[int, int], installed: bool, message: str | None) -> None:
    with (
        patch("torch.cuda.is_available", return_value=True),
        patch("torch.cuda.get_device_capability", return_value=capability),
        patch("torch.cuda.get_device_name", return_value="A100"),
        patch("importlib.util.find_spec", return_value=object() if installed else None),
        nullcontext() if message is None else pytest.raises(InputError, match=message),
    ):
        _check_fp8()


def test_fsdp2_alone_has_a_group_of_one(tmp_path: Path) -> None:
    with start_runtime(tiny_config(tmp_path, "none.tar", "parallel.type=fsdp2")) as runtime:
        assert runtime.group is not None
        assert runtime.world_size == dist.get_world_size() == 1
    assert not dist.is_initialized()
    with start_runtime(tiny_config(tmp_path, "none.tar")) as runtime:
        assert runtime.group is None


def test_torch_does_not_choose_cudnn_for_attention(tmp_path: Path) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        with start_runtime(tiny_config(tmp_path, "none.tar")):
            assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (dist.DistStoreError("timed out"), RunError),
        (RuntimeError("Gloo connectFullMesh failed with [/x/gloo/transport/tcp/pair.cc:152] timed out"), RunError),
        (RuntimeError("no such device"), RuntimeError),
    ],
)
def test_ranks_that_do_not_meet_are_one_line(error: RuntimeError, kind: type[Exception], tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", "none.tar")
    failing = patch("clipx.distributed.runtime.Accelerator", side_effect=error)
    with failing, pytest.raises(kind) as raised, start_runtime(config):
        pass
    assert ("processes met within parallel.timeout_s=" in str(raised.value)) == (kind is RunError)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("[/x/gloo/transport/tcp/pair.cc:152] connect [127.0.1.1]:41: Connection refused", RunError),
        ("no", RuntimeError),
    ],
)
def test_hosts_without_a_way_by_gloo_are_one_line(
    message: str, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist, "new_group", Mock(side_effect=RuntimeError(message)))
    config = tiny_config(tmp_path / "run", "none.tar", "parallel.type=fsdp2")
    with pytest.raises(kind) as raised, start_runtime(config):
        pass
    assert ("GLOO_SOCKET_IFNAME" in str(raised.value)) == (kind is RunError)
    assert not dist.is_initialized()


def test_deterministic_fills_no_memory_that_nobody_reads_and_ends_with_the_run(tmp_path: Path) -> None:
    def settings() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory

    before = settings()
    assert before == (False, True)
    try:
        with start_runtime(tiny_config(tmp_path, "none.tar", "deterministic=true")):
            assert settings() == (True, False)
        assert settings() == before
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True


def test_offload_without_a_launcher_opens_its_own_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on one GPU under plain python; there is none here, so the group is not made."""
    for name in TORCH:
        monkeypatch.delenv(name, raising=False)
    opened: list[str | None] = []
    monkeypatch.setattr("clipx.distributed.runtime._check_machine", lambda config: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: opened.append(backend))
    config = tiny_config(tmp_path, "none.tar", "parallel={type: fsdp2, cpu_offload: true}")
    with start_runtime(config) as runtime:
        assert runtime.world_size == 1
    assert opened == ["cuda:nccl,cpu:gloo"]


def test_a_rank_without_a_gpu_computes_in_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over several threads depend on their number."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with (
            patch("torch.cuda.is_available", return_value=False),
            start_runtime(tiny_config(tmp_path, "none.tar")),
        ):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
