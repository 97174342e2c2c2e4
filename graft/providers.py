"""What can compute here: the ONNX Runtime providers, in the order in which they are worth trying.

A provider is named `tensorrt`, `cuda` or `cpu`; `auto` is the best that works. Imports ONNX Runtime only.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import onnxruntime

from graft.errors import GraftError, InputError, nearest

Provider = Literal["auto", "tensorrt", "cuda", "cpu"]

FULL_NAMES = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
# The largest batch that TensorRT builds one engine for; larger ones make it build another while a client waits.
TENSORRT_BATCH = 256


def candidates(provider: str) -> tuple[str, ...]:
    """The providers to try in turn for what was asked, by what the driver and the ONNX Runtime build say.

    `auto` leaves TensorRT out: it builds its engines for minutes, which only a person can want.

    Raises:
        InputError: the provider has no such name.
        GraftError: a GPU provider was asked for by name, and the machine or the build has none.
    """
    names = get_args(Provider)
    if provider not in names:
        raise InputError(f"the provider must be {', '.join(names)}; {nearest(provider, names)}. Received: {provider}")
    if provider == "cpu":
        return ("cpu",)
    wanted = "cuda" if provider == "auto" else provider
    reason = lacking(wanted)
    if provider == "auto":
        return ("cpu",) if reason else ("cuda", "cpu")
    if reason:
        raise GraftError(f"provider {provider} was asked for, but {reason}; or ask for cpu")
    return (provider,)


def lacking(provider: str) -> str:
    """Why the GPU provider cannot come up, as far as can be known before a session is opened; empty if nothing is."""
    # ONNX Runtime lists a provider as available wherever it was compiled in, GPU or not: ask the driver as well.
    if FULL_NAMES[provider] not in onnxruntime.get_available_providers():
        return f"this ONNX Runtime has no {provider}; install onnxruntime-gpu"
    if not count_gpus():
        return "no NVIDIA GPU answers on this machine"
    return ""


def count_gpus() -> int:
    """How many GPUs the NVIDIA driver offers; 0 without a driver."""
    driver = _driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def driver_cuda() -> str:
    """The newest CUDA that the installed driver can run, such as `12.8`; empty without a driver."""
    driver = _driver()
    version = ctypes.c_int(0)
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)):
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def preload() -> str:
    """Load the CUDA and cuDNN libraries of the pip wheels, which are on no search path; returns what could not be."""
    complaints = io.StringIO()
    with contextlib.redirect_stdout(complaints):
        onnxruntime.preload_dlls()
    return "; ".join(line for line in complaints.getvalue().splitlines() if line.startswith("Failed"))


def session_providers(
    provider: str, image_size: tuple[int, int], precision: str = "fp32", cuda_graphs: bool = False
) -> list[tuple[str, Mapping[str, str]]]:
    """What `onnxruntime.InferenceSession` takes as `providers`; no CPU is named beside a GPU."""
    # A search over all algorithms, the default, would repeat itself at each new batch size.
    cuda = {"cudnn_conv_algo_search": "HEURISTIC", "enable_cuda_graph": "1" if cuda_graphs else "0"}
    options: dict[str, Mapping[str, str]] = {"cpu": {}, "cuda": cuda}
    if provider != "tensorrt":
        return [(FULL_NAMES[provider], options[provider])]
    # What TensorRT cannot do itself runs on CUDA.
    tensorrt = _tensorrt_options(image_size, precision, cuda_graphs)
    return [(FULL_NAMES["tensorrt"], tensorrt), (FULL_NAMES["cuda"], options["cuda"])]


def _tensorrt_options(image_size: tuple[int, int], precision: str, cuda_graphs: bool) -> Mapping[str, str]:
    pixels = "x".join(map(str, (*image_size, 3)))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graft" / "tensorrt"
    return {
        # It may use what the file's precision allows and no less: an fp32 file is computed in float32.
        "trt_fp16_enable": "1" if precision == "fp16" else "0",
        "trt_int8_enable": "1" if precision == "int8" else "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_cuda_graph_enable": "1" if cuda_graphs else "0",
        "trt_profile_min_shapes": f"image:1x{pixels}",
        "trt_profile_opt_shapes": f"image:32x{pixels}",
        "trt_profile_max_shapes": f"image:{TENSORRT_BATCH}x{pixels}",
    }
