"""Batch scoring as a flow: lay out, score shard by shard, put together.

In: pictures and a model. Out: one CSV, a row for each picture, and a page in Prefect that says what it holds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run

from flows import promotion
from flows.artifacts import ProgressArtifact
from flows.events import Advanced
from flows.faults import translated
from flows.locking import run_lock
from flows.project import find_root, state_folder
from graft import inference, params, scoring
from graft.errors import GraftError, InputError
from graft.progress import Meter
from graft.scoring import Job, Summary, Work

PROD = "prod"
EXPORTED = "models/onnx"


def _flow_run_name() -> str:
    return f"score {Path(str(flow_run.parameters.get('source', ''))).name}"


@flow(name="score", flow_run_name=_flow_run_name, persist_result=False)
def score(
    source: str,
    out: str,
    repo: str = ".",
    model: str | None = None,
    provider: str = "auto",
    precision: str = "auto",
    labels_only: bool = False,
    shard: int = scoring.SHARD,
    dask: str | None = None,
) -> dict[str, Any]:
    """Write what the model says of every picture of `source` to the CSV `out`; killed, it goes on when run again.

    Args:
        source: a folder, zip or tar of pictures; relative to the project, like `out` and `model`.
        out: the CSV.
        repo: a folder inside a Graft project.
        model: an exported file; `prod` is the live version, None the project's own export.
        provider: auto, tensorrt, cuda or cpu: what is asked for or an error.
        precision: of the project's own export: auto, fp32, fp16 or int8.
        labels_only: leave the classes' own probabilities out.
        shard: pictures that are scored between two points to resume at.
        dask: address of a Dask scheduler whose workers see the same folders; None works here.

    Returns:
        `{"pictures", "unreadable", "labels": {class: pictures}, "provider", "problems": [[file, why], …]}`

    Raises:
        GraftError: something is missing or fails; one sentence.
    """
    if shard < 1:
        raise InputError(f"a shard has at least one picture. Received: {shard}")
    root = find_root(Path(repo))
    with run_lock(state_folder(root) / "score", wait=True, waiting=get_run_logger().info), translated():
        path = _model(root, model, provider, precision)
        threads = params.load(root / params.FILE).runtime.threads
        job = Job(root / source, root / out, path, provider, threads, labels_only, shard)
        with scoring.begun(job) as work:
            _score(work, dask)
            summary = work.merge()
            return _told(work, summary)


def _model(root: Path, asked: str | None, provider: str, precision: str) -> Path:
    if asked == PROD:
        return promotion.live_file(root)
    if asked is not None:
        return root / asked
    return inference.find_file(root / EXPORTED, provider, precision)


def _score(work: Work, dask: str | None) -> None:
    """Do the shards that are left, and say how far it is."""
    left = work.left
    logger = get_run_logger()
    logger.info("%d pictures on %s; %d other files", len(work.names), work.model.provider, work.ignored)
    if work.stale:
        logger.info("pictures, model or options changed since the run that was interrupted: starting anew")
    done = len(work.shards) - len(left)
    if done:
        logger.info("%d of %d shards were done by a run that was interrupted", done, len(work.shards))
    shown, began = ProgressArtifact(), time.monotonic()
    pictures, total = 0, min(len(left) * work.job.shard, len(work.names))
    meter = Meter("score", total)
    for count in _shards(work, left) if dask is None else _elsewhere(work, left, dask):
        pictures += count
        meter.advance(count)
        seconds = time.monotonic() - began
        rate = pictures / seconds
        shown.update(Advanced("score", "score", pictures, total, "images", rate, (total - pictures) / rate, ""))


def _shards(work: Work, left: list[int]) -> Iterator[int]:
    for number in left:
        yield work.score(number)


def _elsewhere(work: Work, left: list[int], address: str) -> Iterator[int]:
    """Each shard's pictures as the workers of a Dask cluster finish it."""
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise InputError(
            "a Dask cluster is asked through the package `distributed`; run `pip install distributed`"
        ) from error
    try:
        client = Client(address, timeout=5)
    except (OSError, ValueError) as error:
        raise GraftError(f"the Dask scheduler {address} does not answer ({error}); is it up?") from error
    with client:
        for future in as_completed([client.submit(scoring.joined, work.shared, work.identity, n) for n in left]):
            yield future.result()


def _told(work: Work, summary: Summary) -> dict[str, Any]:
    """The flow's result, and its page."""
    lines = [f"**{summary.pictures} pictures** in `{work.job.out}`, {summary.unreadable} unreadable", ""]
    lines += ["| label | pictures |", "|---|---|"]
    lines += [f"| {label} | {count} |" for label, count in summary.labels.most_common()]
    create_markdown_artifact("\n".join(lines), key="scored", description="What was found")
    if summary.problems:
        rows = [{"file": name, "problem": problem} for name, problem in summary.problems]
        create_table_artifact(rows, key="unreadable", description="Unreadable pictures, the first ones")
    return {
        "pictures": summary.pictures,
        "unreadable": summary.unreadable,
        "labels": dict(summary.labels.most_common()),
        "provider": work.model.provider,
        "problems": [list(problem) for problem in summary.problems],
    }
