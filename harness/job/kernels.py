"""How a job computes: which kernels, the compiler's cache, and what becomes of memory that is freed."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil

import torch

from harness.data.cache import cache_folder
from harness.errors import HarnessError

_CPU_COMPILERS = ("g++", "clang++", "c++")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MMAP_THRESHOLDS = (1 << 30, 32 << 20)  # bytes; glibc before 2.35 refuses more than the second


def prepare_compiler(kernels: str, device: torch.device) -> None:
    """Keep what is compiled below the cache folder, for later attempts and the other runs of a study.

    Raises:
        HarnessError: there is no compiler, or no GPU to replay graphs on.
    """
    if kernels not in ("compiled", "cuda_graphs"):
        return
    if kernels == "cuda_graphs" and device.type != "cuda":
        raise HarnessError("resources.kernels: cuda_graphs, but there is no CUDA device: take compiled")
    if device.type == "cpu" and not any(map(shutil.which, filter(None, (os.environ.get("CXX"), *_CPU_COMPILERS)))):
        raise HarnessError(
            f"resources.kernels: {kernels} needs a C++ compiler ({', '.join(_CPU_COMPILERS)}; or name one by CXX): "
            "install one or load its module, or take kernels: fused"
        )
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("compiled")))


def keep_freed_memory() -> None:
    """Let the C library keep memory that a step frees for the next one, instead of returning it to the system.

    Returned and taken again, every page of it is cleared and mapped anew at each step. No bits depend on it.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    any(mallopt(_M_MMAP_THRESHOLD, threshold) for threshold in _MMAP_THRESHOLDS)  # the first that is taken
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
