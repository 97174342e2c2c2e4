"""The command line: a thin shell over the rooms, which are imported only by the command that needs them.

Exit codes: 0 done, 1 the work failed, 2 what a person gave is wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import graft
from graft.errors import GraftError, InputError

app = typer.Typer(
    help="Graft a pretrained network onto your own pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"graft {graft.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


def find_project(start: Path | None = None) -> Path:
    """The nearest folder at or above `start` that holds a `dvc.yaml`.

    Raises:
        InputError: there is none.
    """
    folder = (start or Path.cwd()).resolve()
    for candidate in (folder, *folder.parents):
        if (candidate / "dvc.yaml").is_file():
            return candidate
    raise InputError(f"no dvc.yaml in {folder} or above it; change into a Graft project first")


@app.command()
def run(
    targets: Annotated[list[str] | None, typer.Argument(help="Stages to run, with what they need; none is all.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("-S", "--set", metavar="KEY=VALUE", help="Change params.yaml first; repeatable.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run stages even where nothing changed.")] = False,
    isolate: Annotated[bool, typer.Option("--isolate", help="Give each stage a process of its own.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Fail where another run holds the repository.")] = False,
) -> None:
    """Bring the project up to date: run what changed, as a Prefect flow."""
    from flows.link import Request
    from flows.run import Run

    request = Request(str(find_project()), tuple(targets or ()), force=force, isolate=isolate, wait=not no_wait)
    raise typer.Exit(Run(request, prepare=lambda root: _set_params(root, assignments or [])).work())


def _set_params(root: Path, assignments: list[str]) -> None:
    if assignments:
        from graft import params

        file = root / params.FILE
        params.write(file, params.override(file.read_text(encoding="utf-8"), assignments))


@app.command()
def status(
    targets: Annotated[list[str] | None, typer.Argument(help="Stages to look at, with what they need.")] = None,
) -> None:
    """Say which stages would run, and why."""
    from flows.run import show_status

    show_status(find_project(), tuple(targets or ()))


def main() -> None:
    """Run a command; errors a person can mend are one line on stderr."""
    try:
        app()
    except GraftError as error:
        typer.secho(f"graft: {error}", fg="red", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
