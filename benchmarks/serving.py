"""The server against ONNX Runtime called directly and against its peers, on the same file in the same run.

Peers are no dependencies. Those that are found are measured, each in an environment of its own:
`.venv-peers` (litserve bentoml onnxruntime==1.26.0) and `.venv-mlserver` (mlserver onnxruntime==1.26.0).
Every figure is the median of ROUNDS interleaved rounds, with the lowest and the highest beside it.
`python -m benchmarks.serving PART …` runs some of the parts: saturated, half_load, side_by_side, memory.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np

from benchmarks import serving_load as load
from benchmarks.serving_models import vgg16

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "serving_peers"
ROUNDS = int(os.environ.get("GRAFT_BENCH_ROUNDS", "3"))
SECONDS = 5.0
WARM_UP = 1.5
BATCHES = (1, 8, 16, 32, 64)
SMALL_BATCHES = (1, 2, 4, 8, 32)
PORT = 8377
THREADS = len(os.sched_getaffinity(0))
MEMORY_REQUESTS = 100_000
BINARY = "/v2/models/vgg16/infer"


def main(names: Sequence[str] = ()) -> None:
    parts = {"saturated": saturated, "half_load": half_load, "side_by_side": side_by_side, "memory": memory}
    with tempfile.TemporaryDirectory() as folder:
        full = vgg16(Path(folder) / "full.onnx", 1.0)
        quarter = vgg16(Path(folder) / "quarter.onnx", 0.25)
        print(f"{THREADS} cores, {ROUNDS} rounds, load average {os.getloadavg()[0]:.1f} before the start\n")
        for name in names or parts:
            parts[name](full, quarter)


def saturated(full: Path, quarter: Path) -> None:
    """Print the share of ONNX Runtime's own rate that reaches clients.

    Processor time tells the same where other work shares the cores: what the model alone takes for a picture, over
    what model, server and load generator take together.
    """
    rows = []
    for name, path, pictures, clients in (
        ("VGG16", full, 1, 64),
        ("VGG16", full, 8, 12),
        ("VGG16, quarter width", quarter, 1, 64),
        ("VGG16, quarter width", quarter, 8, 12),
    ):
        alone = {batch: direct(path, batch, 1.5)[0] for batch in BATCHES}
        batch = max(alone, key=lambda size: alone[size])
        rates, ratios, shares = [], [], []
        with graft(path) as process:
            for _ in range(ROUNDS):
                before, cost_before = direct(path, batch, SECONDS / 2)
                load.closed_loop(PORT, binary(pictures), clients, 0, WARM_UP)
                used = processor(process) + time.process_time()
                result = load.closed_loop(PORT, binary(pictures), clients, 0, SECONDS)
                used = processor(process) + time.process_time() - used
                after, cost_after = direct(path, batch, SECONDS / 2)
                assert result.errors == 0
                answered = len(result.latencies) * pictures
                rates.append(result.rate * pictures)
                ratios.append(result.rate * pictures / ((before + after) / 2))
                shares.append((cost_before + cost_after) / 2 / (used / answered))
        figures = (spread(rates, 0), spread(ratios, 2), spread(shares, 2))
        rows.append((name, str(pictures), str(clients), str(batch), *figures))
    head = ("model", "pictures a request", "clients", "best batch alone", "pictures/s", "of ONNX Runtime's rate")
    table((*head, "of the processor time"), rows)


def half_load(full: Path, quarter: Path) -> None:
    """Print latencies at half the saturated rate, requests coming evenly and at random.

    Beside them those of a server that costs nothing: ONNX Runtime's own times, and whatever waits runs together.
    """
    for label, path in (("VGG16", full), ("VGG16, quarter width", quarter)):
        rows = []
        with graft(path):
            load.closed_loop(PORT, binary(1), 64, 0, WARM_UP)
            rate = load.closed_loop(PORT, binary(1), 64, 0, SECONDS).rate / 2
            times = [batch / direct(path, batch, 0.5)[0] for batch in SMALL_BATCHES]
            for name, even in (("evenly", True), ("at random (Poisson)", False)):
                results, own, ideal = [], [], []
                for number in range(ROUNDS):
                    times[0] = 1 / direct(path, 1, 1.0)[0]
                    results.append(load.open_loop(PORT, binary(1), rate, 2 * SECONDS, seed=number, even=even))
                    own.append(times[0] * 1000)
                    ideal.append(costless(load.arrivals(rate, 2 * SECONDS, number, even), times))
                measured = (own, *percentiles(results), over(results, own), tails(results))
                free = (*percentiles(ideal), tails(ideal))
                errors = str(sum(result.errors for result in results))
                rows.append((name, f"{rate:.0f}", errors, *(spread(values, 1) for values in (*measured, *free))))
        print(f"{label}:\n")
        head = (
            "requests come",
            "a second",
            "errors",
            "model alone ms",
            "p50 ms",
            "p99 ms",
            "p50 over model",
            "p99/p50",
        )
        table((*head, "costless: p50 ms", "p99 ms", "p99/p50"), rows)


def percentiles(results: Sequence[load.Result]) -> tuple[list[float], list[float]]:
    return [result.percentile(50) for result in results], [result.percentile(99) for result in results]


def over(results: Sequence[load.Result], own: Sequence[float]) -> list[float]:
    return [result.percentile(50) - alone for result, alone in zip(results, own, strict=True)]


def tails(results: Sequence[load.Result]) -> list[float]:
    return [result.percentile(99) / result.percentile(50) for result in results]


def costless(due: np.ndarray, times: Sequence[float]) -> load.Result:
    """Latencies where a run of each of SMALL_BATCHES takes `times` seconds and all else takes none."""
    latencies = []
    free, start = 0.0, 0
    while start < len(due):
        free = max(free, due[start])
        end = min(int(np.searchsorted(due, free, side="right")), start + SMALL_BATCHES[-1])
        free += float(np.interp(end - start, SMALL_BATCHES, times))
        latencies.append(free - due[start:end])
        start = end
    return load.Result(float(due[-1]), np.concatenate(latencies), 0)


def side_by_side(full: Path, _: Path) -> None:
    """Print every server that is here on the same pictures as JSON, and this one on binary tensors too."""
    pictures = [np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3), np.uint8) for seed in range(16)]
    contenders = found_contenders(full, pictures)
    figures: dict[tuple[int, str], list[load.Result]] = {
        (clients, name): [] for clients in (1, 16) for name, _, _ in contenders
    }
    for turn in range(ROUNDS):
        for name, server, requests in contenders:
            print(f"round {turn + 1}: {name}", file=sys.stderr, flush=True)
            with server():
                for clients in (1, 16):
                    load.closed_loop(PORT, requests, clients, 0, 0.1)  # until each client was answered once
                    figures[clients, name].append(load.closed_loop(PORT, requests, clients, WARM_UP, 0.8 * SECONDS))
    for clients in (1, 16):
        print(f"{clients} client{'s' * (clients > 1)}:\n")
        rows = []
        for name, _, _ in contenders:
            results = figures[clients, name]
            rates, errors = [result.rate for result in results], sum(result.errors for result in results)
            p50, p99 = percentiles(results)
            rows.append((name, spread(rates, 0), spread(p50, 1), spread(p99, 1), str(errors)))
        table(("server", "requests/s", "p50 ms", "p99 ms", "errors"), rows)


def memory(_: Path, quarter: Path) -> None:
    """Print the server's resident memory after each tenth of MEMORY_REQUESTS requests."""
    with graft(quarter) as process:
        sizes, asked, bad = [], 0, 0
        for tenth in range(1, 11):
            while asked < MEMORY_REQUESTS * tenth / 10:
                result = load.closed_loop(PORT, binary(1), 32, 0, 1)
                asked += len(result.latencies)
                bad += result.errors
            sizes.append(resident(process))
    shown = ", ".join(f"{size:.1f}" for size in sizes)
    print(f"Resident memory in MiB after each tenth of {asked} requests ({bad} errors): {shown}\n")


def direct(path: Path, batch: int, seconds: float) -> tuple[float, float]:
    """ONNX Runtime as it comes, called in a process of its own: pictures and processor seconds a picture."""
    code = (
        "import sys, time, numpy as np, onnxruntime\n"
        "path, batch, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])\n"
        "options = onnxruntime.SessionOptions(); options.intra_op_num_threads = int(sys.argv[4])\n"
        "session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])\n"
        "given = {'image': np.full((batch, 32, 32, 3), 99, np.uint8)}\n"
        "until = time.perf_counter() + 0.5\n"
        "while time.perf_counter() < until: session.run(None, given)\n"
        "start, used, runs = time.perf_counter(), time.process_time(), 0\n"
        "while time.perf_counter() < start + seconds: session.run(None, given); runs += 1\n"
        "pictures = runs * batch\n"
        "print(pictures / (time.perf_counter() - start), (time.process_time() - used) / pictures)\n"
    )
    command = [sys.executable, "-c", code, path, str(batch), str(seconds), str(THREADS)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    rate, cost = map(float, done.stdout.split())
    return rate, cost


def binary(count: int) -> list[bytes]:
    """Requests of `count` pictures as a binary tensor of the Open Inference Protocol."""
    requests = []
    for seed in range(16):
        images = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)
        tensor = {
            "name": "image",
            "datatype": "UINT8",
            "shape": list(images.shape),
            "parameters": {"binary_data_size": images.size},
        }
        document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        head = json.dumps(document).encode()
        headers = {"inference-header-content-length": str(len(head))}
        requests.append(load.http_request(BINARY, head + images.tobytes(), headers))
    return requests


Contender = tuple[str, Callable[[], AbstractContextManager[object]], list[bytes]]


def found_contenders(path: Path, pictures: Sequence[np.ndarray]) -> list[Contender]:
    """This server and the peers that are installed, each with its requests."""

    def posts(route: str, body: Callable[[np.ndarray], object]) -> list[bytes]:
        headers = {"content-type": "application/json"}
        return [load.http_request(route, json.dumps(body(images)).encode(), headers) for images in pictures]

    def tensor(images: np.ndarray) -> object:
        data = {
            "name": "image",
            "datatype": "UINT8",
            "shape": list(images.shape),
            "data": images.ravel().tolist(),
        }
        return {"inputs": [data]}

    peers, mlserver = ROOT / ".venv-peers/bin/python", ROOT / ".venv-mlserver/bin"
    environment = {"MODEL": str(path), "THREADS": str(THREADS), "BENTOML_DO_NOT_TRACK": "true"}
    contenders: list[Contender] = [
        ("Graft, binary tensors", lambda: graft(path), binary(1)),
        ("Graft, JSON", lambda: graft(path), posts(BINARY, tensor)),
    ]
    if peers.exists():
        for delay in ("0.005", "0"):
            lit = [peers, PEERS / "litserve_server.py", path, PORT, THREADS, delay]
            contenders.append(
                (
                    f"LitServe, delay {float(delay) * 1000:.0f} ms",
                    lambda lit=lit: started(lit),
                    posts("/predict", lambda images: {"image": images[0].tolist()}),
                )
            )
        bento = [
            peers.with_name("bentoml"),
            "serve",
            "bentoml_service:Classifier",
            "--port",
            PORT,
            "--host",
            "127.0.0.1",
        ]
        contenders.append(
            (
                "BentoML",
                lambda: started(bento, environment, PEERS),
                posts("/predict", lambda images: {"images": images.tolist()}),
            )
        )
    if (mlserver / "mlserver").exists():
        contenders.append(("MLServer", lambda: mlserver_in(mlserver, environment), posts(BINARY, tensor)))
    keras = [sys.executable, PEERS / "keras_server.py", PORT, "1.0"]
    contenders.append(
        (
            "FastAPI + keras.predict",
            lambda: started(keras, {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}),
            posts("/predict", lambda images: {"image": images[0].tolist()}),
        )
    )
    missing = [str(venv) for venv in (peers, mlserver) if not venv.exists()]
    if missing:
        print(f"not installed and not measured: {', '.join(missing)}\n")
    return contenders


@contextmanager
def mlserver_in(binaries: Path, environment: dict[str, str]) -> Iterator[object]:
    """MLServer with its two files of settings."""
    with tempfile.TemporaryDirectory() as folder:
        model = {
            "name": "vgg16",
            "implementation": "mlserver_runtime.Classifier",
            "max_batch_size": 32,
            "max_batch_time": 0.005,
        }
        (Path(folder) / "model-settings.json").write_text(json.dumps(model))
        server = {"http_port": PORT, "grpc_port": PORT + 1, "metrics_port": PORT + 2, "parallel_workers": 0}
        (Path(folder) / "settings.json").write_text(json.dumps({**server, "host": "127.0.0.1", "debug": False}))
        command = [binaries / "mlserver", "start", folder]
        with started(command, {**environment, "PYTHONPATH": str(PEERS)}) as process:
            yield process


@contextmanager
def graft(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """This server as `graft serve` starts it, with nothing switched off."""
    command = [
        sys.executable,
        "-m",
        "graft.cli",
        "serve",
        "--model",
        path,
        "--port",
        PORT,
        "--provider",
        "cpu",
    ]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--threads", THREADS, "--drain", "0", "--traffic", folder]
        with started([*command, *options]) as process:
            yield process


@contextmanager
def started(
    command: Sequence[object], environment: dict[str, str] | None = None, folder: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that answers on PORT, ended by its own signal afterwards."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            if not answers(process):
                log.seek(0)
                raise SystemExit(f"{command[0]} did not start:\n{log.read().decode()[-3000:]}")
            yield process
        finally:
            os.killpg(process.pid, 15)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
            free_port(process.pid)


def free_port(group: int) -> None:
    """Wait until nothing listens on PORT: a peer's workers may outlive the process that started them."""
    until = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", PORT)):
                return
        if time.monotonic() > until:
            os.killpg(group, 9)
        time.sleep(0.1)


def answers(process: subprocess.Popen[bytes]) -> bool:
    """Wait until something speaks HTTP on PORT."""
    until = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=1).close()
            return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            time.sleep(0.1)
    return False


def processor(process: subprocess.Popen[bytes]) -> float:
    """Processor seconds of the process so far, all its threads together."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(process: subprocess.Popen[bytes]) -> float:
    """Resident memory in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def spread(values: Sequence[float], digits: int) -> str:
    """Median, with lowest and highest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)
    print()


if __name__ == "__main__":
    main(sys.argv[1:])
