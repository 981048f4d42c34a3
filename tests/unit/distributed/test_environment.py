"""Variables that would change what is computed: taken away before torch is there, refused when it is."""

import logging
import sys

import pytest
from tiny import tiny_config

from clipx.config.schema import RunConfig
from clipx.distributed.environment import overrule_environment
from clipx.errors import InputError

ACCELERATE = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_DYNAMO_BACKEND": "inductor",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_TP_SIZE": "2",
}
LIBRARIES = [
    "ATEN_CPU_CAPABILITY",
    "CUBLASLT_WORKSPACE_SIZE",
    "DISABLE_ADDMM_CUDA_LT",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "PYTORCH_JIT",
    "PYTORCH_TUNABLEOP_ENABLED",
    "TIMM_FUSED_ATTN",
    "TORCHDYNAMO_DISABLE",
    "TORCHDYNAMO_SUPPRESS_ERRORS",
    "TORCHINDUCTOR_CPP_GEMM_CACHE_BLOCKING",
    "TORCHINDUCTOR_EMULATE_PRECISION_CASTS",
    "TORCHINDUCTOR_PROLOGUE_FUSION",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "TORCH_COMPILE_DISABLE",
    "TORCH_CUDNN_V8_API_DISABLED",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
    "TRITON_DEFAULT_FP_FUSION",
    "TRITON_INTERPRET",
]
KEPT = [
    "ACCELERATOR",
    "CUDA_VISIBLE_DEVICES",
    "CUDNN_PATH",
    "CUDNN_VERSION",  # of images with CUDA
    "HF_HOME",
    "NCCL_DEBUG",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCHELASTIC_RUN_ID",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCHINDUCTOR_COMPILE_THREADS",
    "TORCH_DISTRIBUTED_DEBUG",
    "TORCH_HOME",
    "TORCH_LOGS",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "TRITON_CACHE_DIR",
    "TRITON_PTXAS_PATH",
]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What was said, in a process that has not imported torch yet."""
    monkeypatch.delitem(sys.modules, "torch")
    caplog.set_level(logging.WARNING)
    return caplog


@pytest.fixture
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return tiny_config(tmp_path_factory.mktemp("run"), "none.tar", "precision=bf16")


def test_what_changes_the_computation_goes_and_the_rest_stays(said: pytest.LogCaptureFixture) -> None:
    environment = dict.fromkeys((*LIBRARIES, *KEPT), "1") | ACCELERATE
    overrule_environment(environment=environment)
    assert environment == dict.fromkeys(KEPT, "1")


def test_it_is_said_once_in_one_line_with_at_most_ten_names(said: pytest.LogCaptureFixture) -> None:
    environment = dict.fromkeys(LIBRARIES[:3], "1") | ACCELERATE
    overrule_environment(environment=environment)
    overrule_environment(environment=environment)
    names = sorted([*LIBRARIES[:3], *(name for name in ACCELERATE if name.startswith("ACCELERATE_"))])
    line = f"the config alone says what is computed; ignored from the environment: {', '.join(names)}"
    assert [record.message for record in said.records] == [line]
    said.clear()
    overrule_environment(environment=dict.fromkeys(LIBRARIES, "1"))
    assert said.records[0].message.endswith(f", {LIBRARIES[9]} and {len(LIBRARIES) - 10} more")


def test_other_ranks_say_nothing(said: pytest.LogCaptureFixture) -> None:
    environment = ACCELERATE | {"RANK": "1"}
    overrule_environment(environment=environment)
    assert (environment, said.text) == ({"RANK": "1"}, "")


def test_what_accelerate_launch_sets_by_itself_is_not_worth_a_word(
    said: pytest.LogCaptureFixture, config: RunConfig
) -> None:
    environment = {
        "ACCELERATE_USE_CPU": "False",
        "ACCELERATE_MIXED_PRECISION": "bf16",  # as the config says
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_USE_FSDP": "false",
        "FSDP_VERSION": "2",
    }
    overrule_environment(config, environment)
    assert (environment, said.text) == ({}, "")
    overrule_environment(config, {"ACCELERATE_MIXED_PRECISION": "fp16"})
    assert "ACCELERATE_MIXED_PRECISION" in said.text


def test_accelerate_launched_for_fsdp_wants_fsdp(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    environment = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    with pytest.raises(InputError, match=r"parallel\.type=ddp; set parallel\.type=fsdp2"):
        overrule_environment(config, environment)
    sharded = tiny_config(tmp_path_factory.mktemp("run"), "none.tar", "parallel.type=fsdp2")
    overrule_environment(sharded, environment)
    assert environment == {}  # or transformers would load pretrained weights on rank 0 alone


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_torch_may_have_read_is_refused(name: str) -> None:
    assert "torch" in sys.modules
    with pytest.raises(InputError, match=f"{name}=1 in the environment changes what is computed.*unset it before"):
        overrule_environment(environment={name: "1"})
