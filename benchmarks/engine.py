"""The engine against `dvc repro`: nothing to do, a full run, five TensorFlow stages, a hundred stages.

Every row is measured in this run, each side several times in turn; the ratio is of the medians.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHAIN = ROOT / "tests" / "repositories" / "chain"
TIMES = 3


@dataclass(frozen=True)
class Seconds:
    """Wall times of several runs."""

    values: list[float]

    @property
    def median(self) -> float:
        """The one in the middle."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{self.median:6.2f} s ({min(self.values):.2f}–{max(self.values):.2f}, n={len(self.values)})"


class Repository:
    """A temporary DVC repository and the commands that run it."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root = root
        self.environment = environment
        (root / ".dvc").mkdir(parents=True)
        (root / ".dvc/config").write_text("[core]\n    analytics = false\n")
        (root / ".dvc/.gitignore").write_text("/cache\n/tmp\n")
        self.run("git", "init", "-q")

    def run(self, *command: str, **environment: str) -> float:
        """Run a command; the seconds it took, start of the process included."""
        begin = time.perf_counter()
        done = subprocess.run(
            command, cwd=self.root, env={**self.environment, **environment}, text=True, capture_output=True
        )
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return seconds

    def dvc(self, *arguments: str) -> float:
        """The seconds of a `dvc` command."""
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def graft(self, *arguments: str, **environment: str) -> float:
        """The seconds of a `graft` command."""
        return self.run(sys.executable, "-m", "graft.cli", *arguments, **environment)


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DVC_"))}
    return {
        **kept,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "PREFECT_HOME": str(home / "prefect"),
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
        "DVC_NO_ANALYTICS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


@contextmanager
def server(settings: dict[str, str], log: Path) -> Iterator[str]:
    """A real Prefect server on loopback; its API address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=settings,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}/api"
    try:
        end = time.monotonic() + 240
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()  # noqa: S310 - loopback
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def in_turn(times: int, *sides: Callable[[], float]) -> list[Seconds]:
    """Measure each side `times` times, one after the other, so that a busy minute hits all alike."""
    rounds = [[side() for side in sides] for _ in range(times)]
    return [Seconds(list(column)) for column in zip(*rounds, strict=True)]


def row(what: str, text: str, bound: str) -> None:
    print(f"| {what} | {text} | {bound} |", flush=True)


def nothing_to_do(made: Repository) -> None:
    made.dvc("repro")
    made.graft("run")
    dvc, graft = in_turn(TIMES, lambda: made.dvc("repro"), lambda: made.graft("run"))
    text = f"graft run {graft}, dvc repro {dvc}: ratio {graft.median / dvc.median:.2f}"
    row("nothing to do, no server running", text, "≤ 1.5")


WORK = """stages:
  a: {cmd: "python -m work.a", outs: [a.txt], deps: [work]}
  b: {cmd: "python -m work.b", outs: [b.txt], deps: [a.txt]}
  c: {cmd: "python -m work.c", outs: [c.txt], deps: [b.txt]}
  d: {cmd: "python -m work.d", outs: [d.txt], deps: [c.txt]}
  e: {cmd: "python -m work.e", outs: [e.txt], deps: [d.txt]}
"""
# A stage notes its own seconds, from its first line to its last, outside DVC's sight.
STAGE = """import time
begin = time.perf_counter()
{imports}
from pathlib import Path
end = time.perf_counter() + {seconds}
while time.perf_counter() < end:
    sum(range(1000))
Path("{name}.txt").write_text("{name}")
with open("../own.txt", "a") as own:
    own.write(f"{{time.perf_counter() - begin}}\\n")
"""


def five_stages(root: Path, settings: dict[str, str], imports: str, seconds: float) -> Repository:
    made = Repository(root, settings)
    (root / "dvc.yaml").write_text(WORK)
    (root / "work").mkdir()
    (root / "work/__init__.py").touch()
    for name in "abcde":
        text = STAGE.format(imports=imports, seconds=seconds, name=name)
        (root / f"work/{name}.py").write_text(text)
    return made


def own(made: Repository) -> float:
    """The seconds that the stages of the last run noted, forgotten after."""
    file = made.root.parent / "own.txt"
    total = sum(float(line) for line in file.read_text().splitlines())
    file.unlink()
    return total


def overhead(made: Repository, command: Callable[[], float]) -> float:
    wall = command()
    return wall - own(made)


def full_run(made: Repository, url: str, seconds: float) -> None:
    """Wall time beyond the stages' own work, five stages of so many seconds."""
    bare, served, dvc = in_turn(
        TIMES,
        lambda: overhead(made, lambda: made.graft("run", "--force")),
        lambda: overhead(made, lambda: made.graft("run", "--force", PREFECT_API_URL=url)),
        lambda: overhead(made, lambda: made.dvc("repro", "--force")),
    )
    what = f"five stages of {seconds:.0f} s, beyond their own work"
    row(f"{what}, no server", f"graft run {bare}; dvc repro {dvc}", "≤ 10 s")
    row(f"{what}, a server running", f"graft run {served}", "≤ 3 s")


def tensorflow(made: Repository, url: str) -> None:
    """Five stages that import TensorFlow: by hand in one process they cost one import and their work."""
    modules = "; ".join(f"runpy.run_module('work.{name}', run_name='__main__')" for name in "abcde")
    by_hand, graft, dvc = in_turn(
        TIMES,
        lambda: made.run(sys.executable, "-c", f"import runpy; {modules}"),
        lambda: made.graft("run", "--force", PREFECT_API_URL=url),
        lambda: made.dvc("repro", "--force"),
    )
    ratio = (dvc.median - by_hand.median) / (graft.median - by_hand.median)
    row("five TensorFlow stages", f"by hand {by_hand}; graft run {graft}; dvc repro {dvc}", "")
    row("their overhead over by hand, dvc repro : graft run", f"{ratio:.1f}", "≥ 3")


def many(root: Path, settings: dict[str, str], count: int) -> Repository:
    made = Repository(root, settings)
    lines = ["stages:"]
    for i in range(count):
        before = f"o{i - 1}.txt" if i else "in.txt"
        lines += [f"  s{i}:", f"    cmd: cp {before} o{i}.txt", f"    deps: [{before}]", f"    outs: [o{i}.txt]"]
    (root / "dvc.yaml").write_text("\n".join(lines) + "\n")
    (root / "in.txt").write_text("x\n")
    return made


def hundred(folder: Path, settings: dict[str, str], url: str) -> None:
    """Chains of 10, 55 and 100 stages that copy a file: what each of the next 45 costs must not grow."""
    counts = (10, 55, 100)
    chains = [many(folder / str(count), settings, count) for count in counts]
    for made in chains:
        made.graft("run", PREFECT_API_URL=url)
    by_graft = [partial(made.graft, "run", "--force", PREFECT_API_URL=url) for made in chains]
    by_dvc = [partial(made.dvc, "repro", "--force") for made in chains]
    seconds = in_turn(TIMES, *by_graft, *by_dvc)
    ours, theirs = seconds[:3], seconds[3:]
    for count, graft, dvc in zip(counts, ours, theirs, strict=True):
        row(f"chain of {count} stages", f"graft run {graft}; dvc repro {dvc}", "")
    row("each of the next 45, of the last 45", f"graft run {_steps(ours)}; dvc repro {_steps(theirs)}", "flat")


def _steps(chains: list[Seconds]) -> str:
    few, some, lots = (seconds.median for seconds in chains)
    return f"{(some - few) / 45:.3f} s, {(lots - some) / 45:.3f} s"


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="graft-engine-"))
    settings = environment(folder)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start\n")
    print("| what | measured: median (least–most) | wanted |\n|---|---|---|")
    try:
        shutil.copytree(CHAIN, folder / "chain")
        nothing_to_do(Repository(folder / "chain", settings))
        with server(settings, folder / "server.log") as url:
            for seconds in (2.0, 0.0):
                (folder / f"of{seconds}").mkdir()
                full_run(five_stages(folder / f"of{seconds}/work", settings, "", seconds), url, seconds)
            (folder / "heavy").mkdir()
            tensorflow(five_stages(folder / "heavy/work", settings, "import tensorflow", 0.2), url)
            (folder / "many").mkdir()
            hundred(folder / "many", settings, url)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
