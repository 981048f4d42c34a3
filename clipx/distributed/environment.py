"""The config alone says what is computed: variables of the environment that would change it are taken away.

Libraries read hundreds of them, most of them once, when they are imported. So commands call `overrule_environment`
before they import torch, and this file imports no library. What concerns speed, places, logs and the network stays.
"""

import logging
import os
import re
import sys
from collections.abc import MutableMapping

from clipx.config.parallel import Fsdp2Config
from clipx.config.schema import JobConfig
from clipx.distributed.launchers import is_first_rank
from clipx.errors import InputError, some_names

log = logging.getLogger(__name__)

# Read when accelerate's state is made. FSDP_* and the like count only with the switch ACCELERATE_USE_*.
_ACCELERATE = re.compile(r"ACCELERATE_|FSDP_|MEGATRON_LM_|PARALLELISM_CONFIG_|FORK_LAUNCHED$|XLA_USE_BF16$")

# Read by torch 2.11 to 2.15 and what it stands on (cuBLAS, cuDNN, oneDNN, MKL, Triton), and by timm and transformers:
# which kernels, in which precision, compiled how, and pickles where only tensors should be.
_LIBRARIES = re.compile(
    r"TORCH(DYNAMO|INDUCTOR)_"
    r"|TORCH_(ALLOW_TF32|BLAS|COMPILE|COMPILER|CUBLAS|CUBLASLT|CUDNN|DISABLE_NATIVE|DYNAMO|FORCE|INDUCTOR|LINALG"
    r"|LINEAR|MKLDNN|ROCM)_"
    r"|PYTORCH_(JIT|TENSOREXPR|TUNABLEOP|SUM|MIOPEN)(_|$)"
    r"|ATEN_CPU_CAPABILITY$|CUBLASLT_|CUDNN_|NVIDIA_TF32_OVERRIDE$|DISABLE_(ADDMM_CUDA_LT|LLVM_OPT|PTXAS_OPT)$"
    r"|(ONEDNN|DNNL)_|MKL_(CBWR|DEBUG_CPU_TYPE|DISABLE_FAST_MM|DOMAIN_NUM_THREADS|ENABLE_INSTRUCTIONS)$|NPY_DISABLE_"
    r"|TRITON_|TIMM_|TRANSFORMERS_SDPA_|FLASH_ATTENTION_|USE_HUB_KERNELS$"
)
_HARMLESS = re.compile(
    r"(_CACHE|_DIR|_HOME|_PATH|_LIBRARY|_VERSION|_COMPILE_THREADS)$|_CACHE_DIR|_LOG|_VERBOSE|_DEBUG|_DUMP"
)

_OFF = ("", "0", "no", "false", "none", "default")  # as accelerate launch sets those that nobody asked for


def overrule_environment(config: JobConfig | None = None, environment: MutableMapping[str, str] | None = None) -> None:
    """Takes away what would change what is computed, and says so once, on the first rank, in one line.

    Args:
        config: of a run; accelerate's variables that say the same are not worth a word.
        environment: by default that of this process.

    Raises:
        InputError: a library may have read such a variable already; or accelerate launch was told to use FSDP, and the
            config says otherwise.
    """
    environment = os.environ if environment is None else environment
    if config is not None:
        _check_fsdp(config, environment)
    first, named = is_first_rank(environment), []
    for name in sorted(environment):
        if _LIBRARIES.match(name) and not _HARMLESS.search(name):
            if "torch" in sys.modules:
                raise InputError(
                    f"{name}={environment[name]} in the environment changes what is computed, which the config alone "
                    "says, and torch may have read it already: unset it before Python starts"
                )
            named.append(name)
        elif not _ACCELERATE.match(name):
            continue
        elif name.startswith("ACCELERATE_") and not _agrees(name, environment[name], config):
            named.append(name)
        del environment[name]
    if named and first:
        log.warning("the config alone says what is computed; ignored from the environment: %s", some_names(named))


def _check_fsdp(config: JobConfig, environment: MutableMapping[str, str]) -> None:
    launched_for_fsdp = environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if launched_for_fsdp and not isinstance(config.parallel, Fsdp2Config):
        raise InputError(
            f"accelerate launch was told to use FSDP, the config says parallel.type={config.parallel.type}; "
            "set parallel.type=fsdp2 or launch with launch/accelerate/ddp.yaml"
        )


def _agrees(name: str, value: str, config: JobConfig | None) -> bool:
    """Whether a variable of accelerate asks for nothing, or for what the config says."""
    if name == "ACCELERATE_USE_FSDP" or _HARMLESS.search(name):
        return True  # checked, or without effect on what is computed
    if name == "ACCELERATE_MIXED_PRECISION" and config is not None:
        return value.lower() in ({"fp32": "no"}.get(config.precision, config.precision), "no")
    return value.lower() in _OFF
