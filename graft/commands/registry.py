"""`graft retrain`, `schedule`, `up`, and the registry: `versions`, `promote`, `rollback`, `diff`, `prune`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.errors import InputError

if TYPE_CHECKING:
    from flows.registry import Store
    from graft.params import Params
    from graft.registry import Registry, Version

LISTED = 10
COLOURS = {"Promoted": "green", "Kept": "yellow", "Refused": "red", "Failed": "red", "Drifted": "yellow"}


class Overlap(StrEnum):
    """What a run does that begins while another is under way."""

    QUEUE = "queue"
    CANCEL = "cancel"


def add(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    for command in (retrain, schedule, up, versions, promote, rollback, diff, prune):
        app.command()(command)


def retrain(
    accept_data: Annotated[
        bool, typer.Option("--accept-data", help="Train on a delivery that looks wrong: you have looked at it.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Judge the model again though it was judged before.")] = False,
) -> None:
    """Look for new data, run the pipeline, and let the new model go live if it is better."""
    from flows import nightly

    _, _, store = _opened()
    name, why = nightly.run(store.root, accept_data, force)
    typer.echo(f"{typer.style(name, fg=COLOURS.get(name, 'green'), bold=True)}  {why}")
    if name in ("Refused", "Failed"):
        raise typer.Exit(1)


def schedule(
    cron: Annotated[str | None, typer.Option(help="When, such as '0 2 * * *' for two at night.")] = None,
    interval: Annotated[float | None, typer.Option(min=1, help="Seconds between runs.")] = None,
    timezone: Annotated[str, typer.Option(help="Of --cron.")] = "UTC",
    overlap: Annotated[Overlap, typer.Option(help="A run that begins while another is under way.")] = Overlap.QUEUE,
) -> None:
    """Retrain on a schedule, for as long as this command runs."""
    if (cron is None) == (interval is None):
        raise InputError("a schedule wants either --cron or --interval. Received: both or neither")
    from flows import nightly

    _, _, store = _opened()
    nightly.serve(store.root, cron=cron, interval=interval, timezone=timezone, queue=overlap is Overlap.QUEUE)


def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of Prefect's page.")] = 4200,
) -> None:
    """Start a Prefect server on this machine, for as long as this command runs."""
    from flows import local

    _, _, store = _opened()
    local.start_server(store.root, port)


def versions() -> None:
    """List the registered models: version, date, data, metrics, stage."""
    from rich.console import Console
    from rich.table import Table

    _, _, store = _opened()
    now = store.read()
    if not now.versions:
        typer.echo("No version yet; `graft retrain` registers the first.")
        return
    table = Table("Version", "Date", "Pictures", "Data", "Accuracy", "Stage", box=None, pad_edge=False)
    for version in reversed(now.versions):
        table.add_row(version.name, *_facts(version), ", ".join(now.stages(version.name)))
    Console(highlight=False).print(table)


def _facts(version: Version) -> tuple[str, str, str, str]:
    record = version.record
    pictures = sum(record["images"].values()) + record.get("test_images", 0) if record.get("images") else "–"
    accuracy = record.get("accuracy")
    return (
        version.created[:16].replace("T", " "),
        str(pictures),
        str(record.get("data") or "–")[:8],
        f"{accuracy:.2%}" if isinstance(accuracy, float) else "–",
    )


def promote(version: Annotated[str, typer.Argument(help="Such as v1.2.0.")]) -> None:
    """Make a version the live one; running servers swap it."""
    from flows import promotion

    settings, now, store = _opened()
    chosen = now.version(version)
    with store.locked(typer.echo):
        store.fetch()
        promotion.by_hand(store, chosen, f"Promote {chosen.name} by hand", settings.retrain.servers)
    typer.echo(f"{chosen.name} is live.")


def rollback() -> None:
    """Make the version before the live one live again."""
    from flows import promotion

    settings, _, store = _opened()
    with store.locked(typer.echo):
        store.fetch()
        before = store.read().current()
        move = promotion.rollback(store, settings.retrain.servers)
    typer.echo(f"{move.version} is live again{f', {before.version} is not any more' if before else ''}.")


def diff(
    before: Annotated[str, typer.Argument(metavar="V1", help="A version.")],
    after: Annotated[str, typer.Argument(metavar="V2", help="Another.")],
) -> None:
    """Compare two versions: data, parameters, metrics."""
    from rich.console import Console
    from rich.table import Table

    from graft import differences

    _, now, store = _opened()
    pair = (now.version(before), now.version(after))
    table = Table("", "", pair[0].name, pair[1].name, box=None, pad_edge=False)
    sides: list[dict[str, dict[str, Any]]] = [
        differences.facts(version.record, store.text(version, "params.yaml")) for version in pair
    ]
    rows = differences.rows(*sides)
    for row in rows:
        table.add_row(*row)
    if rows:
        Console(highlight=False).print(table)
    else:
        typer.echo(f"{pair[0].name} and {pair[1].name} have the same data, parameters and metrics.")


def prune(
    keep: Annotated[int, typer.Option(min=1, help="Newest versions to keep besides those of a stage.")] = 10,
    dry: Annotated[bool, typer.Option("--dry", help="Only say what would go.")] = False,
    cloud: Annotated[bool, typer.Option("--cloud", help="Also in the DVC remote.")] = False,
) -> None:
    """Forget old versions, and remove the data that nothing needs any more."""
    from flows import pruning

    _, _, store = _opened()
    with store.locked(typer.echo, "retrain"), store.locked(typer.echo):
        store.fetch()
        found = pruning.prune(store, keep, dry=dry, cloud=cloud)
    names = _listed([version.name for version in found.versions])
    typer.echo(f"Would forget {names}." if dry else f"Forgot {names}; freed {_size(found.bytes)}.")


def _listed(names: list[str]) -> str:
    """At most a few names: a year of nights has hundreds."""
    if len(names) > LISTED:
        return f"{len(names)} versions, {names[0]} to {names[-1]}"
    return ", ".join(names) or "no version"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _opened() -> tuple[Params, Registry, Store]:
    """The parameters, the registry as it is now, and its store, of the project around the current folder."""
    from flows.project import find_root
    from flows.registry import Store
    from graft import params

    root = find_root(Path.cwd())
    settings = params.load(root / params.FILE)
    store = Store(root, settings.retrain.git_remote, settings.retrain.branch)
    return settings, store.read(), store
