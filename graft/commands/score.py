"""`graft score`: many pictures into one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SHOWN = 10  # unreadable pictures, in the terminal


def add(app: typer.Typer) -> None:
    """Put the command on the command line."""
    app.command()(score)


def score(
    source: Annotated[Path, typer.Argument(help="A folder, zip or tar of pictures.")],
    out: Annotated[Path, typer.Option(help="CSV to write: a row for each picture.")],
    model: Annotated[
        str | None, typer.Option(help="An exported file, or prod, the live version. [default: the project's own]")
    ] = None,
    provider: Annotated[str, typer.Option(help="auto, tensorrt, cuda or cpu: what is asked for or an error.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32, fp16 or int8 of the project's own model; auto is fp16 on a GPU.")
    ] = "auto",
    labels_only: Annotated[bool, typer.Option("--labels-only", help="Leave each class's own probability out.")] = False,
    shard: Annotated[int, typer.Option(min=1, help="Pictures that a kill can lose; the rest is resumed.")] = 500,
    dask: Annotated[
        str | None, typer.Option(help="Scheduler whose workers do the shards, such as tcp://10.0.0.1:8786.")
    ] = None,
) -> None:
    """Say what is in every picture of a folder, as a Prefect flow that goes on where it was killed."""
    from flows import local
    from flows.project import find_root
    from graft.commands.project import progress_bars

    root = find_root(Path.cwd())
    asked = model if model in (None, "prod") else str(Path(str(model)).resolve())
    local.prepare(root)
    from flows.score import score as flow

    with progress_bars():
        found = flow(
            source=str(source.resolve()),
            out=str(out.resolve()),
            repo=str(root),
            model=asked,
            provider=provider,
            precision=precision,
            labels_only=labels_only,
            shard=shard,
            dask=dask,
        )
    labels = ", ".join(f"{count} {label}" for label, count in found["labels"].items())
    typer.echo(f"{found['pictures']} pictures in {out} ({labels or 'none readable'}), on {found['provider']}.")
    if found["unreadable"]:
        typer.secho(f"{found['unreadable']} could not be read; the column `problem` says why:", fg="yellow")
        for name, problem in found["problems"][:SHOWN]:
            typer.echo(f"  {name}: {problem}")
