"""What this machine offers and what stands in the way: packages, CUDA and cuDNN, providers, threads, model files.

In: the machine, and the project's folder if there is one. Out: findings, each problem with its mend. Whether a
provider works is not read off a list: a small network runs on it, in a process of its own that may die.
"""

from __future__ import annotations

import base64
import ctypes
import importlib.util
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnxruntime

from graft import params, providers
from graft.errors import GraftError, InputError
from graft.inference import SUMMARY, open_model

State = Literal["fine", "absent", "problem"]

PACKAGES = (
    "tensorflow",
    "keras",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "mnn",
    "numpy",
    "dvc",
    "prefect",
)
# Loaded by soname, as the packages themselves do; `{}` is the major version.
LIBRARIES = {"CUDA": ("libcudart.so.{}", "nvidia-cuda-runtime-cu{}"), "cuDNN": ("libcudnn.so.{}", "nvidia-cudnn-cu{}")}
CUDNN = "9"
PROBE_SECONDS = 120
NVIDIA = "0x10de"
SHOWS = "0x03"  # PCI class of display controllers, which compute cards belong to as well

# Conv, Flatten, MatMul on inputs x (1×3×8×8), k (4×3×3×3) and w (144×2): needs cuDNN and cuBLAS, 160 bytes.
NETWORK = base64.b64decode(
    "CAgSADqdAQoPCgF4CgFrEgFjIgRDb252Cg8KAWMSAWYiB0ZsYXR0ZW4KEQoBZgoBdxIBeSIGTWF0TXVsEgFnWhsKAXgSFgoUCAESEAoCCAEKAggD"
    "CgIICAoCCAhaGwoBaxIWChQIARIQCgIIBAoCCAMKAggDCgIIA1oUCgF3Eg8KDQgBEgkKAwiQAQoCCAJiEwoBeRIOCgwIARIICgIIAQoCCAJCBAoA"
    "EBE="
)


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and the mend where that is a problem."""

    section: str
    subject: str
    found: str
    state: State = "fine"
    mend: str = ""


def examine(project: Path | None) -> list[Finding]:
    """All findings for this machine, and for `project` where there is one."""
    gpus = providers.count_gpus()
    return [
        *packages(),
        *graphics(gpus),
        *cuda(gpus > 0),
        *computing(gpus > 0),
        *threads(project),
        *(models(project) if project else []),
    ]


def packages() -> list[Finding]:
    """Versions, and pairs of packages that overwrite each other's files."""
    found = [Finding("Packages", "python", platform.python_version())]
    for name in PACKAGES:
        version = _version(name)
        if version or name not in ("onnxruntime", "onnxruntime-gpu"):
            found.append(Finding("Packages", name, version or "not installed", "fine" if version else "absent"))
    for one, other, keep in (
        ("onnxruntime", "onnxruntime-gpu", "graft[serve]"),
        ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "graft[serve-gpu]"),
    ):
        if _version(one) and _version(other):
            mend = f"pip uninstall -y {one} {other}; pip install '{keep}'"
            found.append(Finding("Packages", f"{one}, {other}", "install the same files", "problem", mend))
    return found


def graphics(gpus: int) -> list[Finding]:
    """GPUs that the driver offers, or hardware that has no driver."""
    if gpus:
        driver = f"{gpus} × {_gpu_name()}; the driver runs CUDA up to {providers.driver_cuda()}"
        return [Finding("GPU", "NVIDIA", driver)]
    if _has_hardware():
        mend = "install the NVIDIA driver; in a container start it with --gpus all"
        return [Finding("GPU", "NVIDIA", "a card is in the machine and no driver answers", "problem", mend)]
    return [Finding("GPU", "NVIDIA", "none on this machine", "absent")]


def cuda(needed: bool) -> list[Finding]:
    """What each package was built for, and which libraries of it the loader finds."""
    providers.preload()
    found = []
    for package, version, extra in (
        ("tensorflow", _tensorflow_cuda(), "gpu"),
        (f"onnxruntime{'-gpu' if _version('onnxruntime-gpu') else ''}", _onnxruntime_cuda(), "serve-gpu"),
    ):
        if not version:
            found.append(Finding("CUDA", package, "not installed, or without CUDA", "absent"))
            continue
        for library, major in (("CUDA", version.split(".")[0]), ("cuDNN", CUDNN)):
            wanted = f"wants {library} {version if library == 'CUDA' else major}"
            where = _find_library(library, major, version.split(".")[0])
            state: State = "fine" if where else "problem" if needed else "absent"
            mend = f"pip install 'graft[{extra}]'" if state == "problem" else ""
            found.append(Finding("CUDA", package, f"{wanted}, finds {where or 'none'}", state, mend))
    return found


def computing(gpu: bool) -> list[Finding]:
    """Each provider, tried; which one `auto` takes; whether TensorFlow sees the GPU."""
    found, working = [], []
    for name in get_args(providers.Provider)[1:]:
        reason = "" if name == "cpu" else providers.lacking(name)
        reason = reason or _probe([sys.executable, "-m", "graft.doctor", name])
        if not reason:
            working.append(name)
        # TensorRT is an addition: its absence stops nobody. CUDA on a machine with a GPU, and the CPU, must work.
        problem = reason and (name == "cpu" or (name == "cuda" and gpu))
        state: State = "problem" if problem else "absent" if reason else "fine"
        mend = _provider_mend(name) if problem else ""
        found.append(Finding("Providers", name, reason or "runs a network", state, mend))
    best = next((name for name in ("cuda", "cpu") if name in working), "nothing")
    found.append(Finding("Providers", "auto", f"takes {best}"))
    if gpu and _version("tensorflow"):
        program = "import tensorflow as t; assert t.config.list_physical_devices('GPU'), 'it lists none'"
        reason = _probe([sys.executable, "-c", program])
        state, mend = ("problem", "pip install 'graft[gpu]'") if reason else ("fine", "")
        found.append(Finding("Providers", "tensorflow", f"no GPU: {reason}" if reason else "sees the GPU", state, mend))
    return found


def threads(project: Path | None) -> list[Finding]:
    """Cores, what a container lets use of them, and the threads that will be started."""
    cores = len(os.sched_getaffinity(0))
    try:
        asked = _threads_asked(project)
    except InputError as error:
        return [Finding("Threads", params.FILE.name, str(error), "problem", f"correct {params.FILE}")]
    used = asked or cores
    quota = _quota()
    found = [Finding("Threads", "cores", f"{cores}{f', of which the container grants {quota:g}' if quota else ''}")]
    allowed = quota or cores
    state: State = "problem" if used > allowed + 0.5 else "fine"
    mend = f"set runtime.threads to {max(1, int(allowed))} in params.yaml" if state == "problem" else ""
    origin = "runtime.threads" if asked else "every core"
    return [*found, Finding("Threads", "used", f"{used} by TensorFlow and ONNX Runtime ({origin})", state, mend)]


def models(project: Path) -> list[Finding]:
    """The project's exported files: whether each opens, and on what `auto` would run it."""
    folder = project / "models" / "onnx"
    if not (folder / SUMMARY).is_file():
        return [Finding("Model", "models/onnx", "nothing exported yet; `graft run` does it", "absent")]
    found = []
    for name, facts in json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["precisions"].items():
        if not facts["shipped"]:
            found.append(Finding("Model", name, f"not shipped: {facts['reason']}", "absent"))
            continue
        try:
            model = open_model(folder / facts["file"])
            found.append(Finding("Model", name, f"opens on {model.provider}{f' ({model.note})' if model.note else ''}"))
        except GraftError as error:
            found.append(Finding("Model", name, str(error), "problem", "graft run --force export"))
    return found


def try_provider(name: str) -> None:
    """Run the small network on `name`.

    Raises:
        GraftError: the provider does not come up, or ONNX Runtime took another.
    """
    complaints = providers.preload() if name != "cpu" else ""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    wanted = providers.FULL_NAMES[name]
    session = onnxruntime.InferenceSession(NETWORK, options, providers=[wanted], enable_fallback=0)
    if session.get_providers()[0] != wanted:
        raise GraftError(f"ONNX Runtime could not load it{f' ({complaints})' if complaints else ''}")
    shapes = {"x": (1, 3, 8, 8), "k": (4, 3, 3, 3), "w": (144, 2)}
    (result,) = session.run(None, {key: np.ones(shape, np.float32) for key, shape in shapes.items()})
    expected = 27.0 * 144  # every convolution sums 27 ones
    if not np.allclose(result, expected, rtol=1e-3):
        raise GraftError(f"it computes {float(result[0, 0]):g} instead of {expected:g}")


def _probe(command: list[str]) -> str:
    """Why `command` failed, in a line; empty if it did not."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PROBE_SECONDS, env=os.environ | quiet
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_SECONDS} s"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"it died with status {done.returncode}"])[-1][:300]


def _provider_mend(name: str) -> str:
    return (
        "pip install 'graft[serve-gpu]', or ask for cpu"
        if name == "cuda"
        else "pip install --force-reinstall 'graft[serve]'"
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _tensorflow_cuda() -> str:
    """From its build record, without the ten seconds of importing it."""
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.origin is None:
        return ""
    record = Path(spec.origin).parent / "python" / "platform" / "build_info.py"
    module_spec = importlib.util.spec_from_file_location("tensorflow_build_info", record)
    if module_spec is None or module_spec.loader is None or not record.is_file():
        return ""
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return str(module.build_info.get("cuda_version", ""))


def _onnxruntime_cuda() -> str:
    return str(getattr(onnxruntime, "cuda_version", "") or "")


def _find_library(library: str, major: str, cuda_major: str) -> str:
    """The version of the pip wheel, or `the system's` where the loader finds one; empty if there is none."""
    soname, wheel = (text.format(number) for text, number in zip(LIBRARIES[library], (major, cuda_major), strict=True))
    if version := _version(wheel):
        return f"{version} ({wheel})"
    try:
        ctypes.CDLL(soname)
    except OSError:
        return ""
    return f"the system's {soname}"


def _gpu_name() -> str:
    driver = ctypes.CDLL("libcuda.so.1")
    name = ctypes.create_string_buffer(128)
    device = ctypes.c_int(0)
    driver.cuInit(0)
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    return name.value.decode(errors="replace")


def _has_hardware() -> bool:
    """Whether a display controller of NVIDIA's is on the PCI bus."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text()
        except OSError:
            continue
        if vendor == NVIDIA and kind.startswith(SHOWS):
            return True
    return False


def _threads_asked(project: Path | None) -> int:
    """`runtime.threads`; 0 where there is no project, and in a serving environment, which reads no parameters."""
    if project is None or not _version("ruamel.yaml"):
        return 0
    return params.load(project / params.FILE).runtime.threads


def _quota() -> float:
    """Cores that the control group grants; 0 where it sets no limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return 0.0
    return 0.0 if limit == "max" else int(limit) / int(period)


if __name__ == "__main__":
    try:
        try_provider(sys.argv[1])
    except Exception as error:  # whatever it is, one line says it
        sys.exit(" ".join(str(error).split()))
