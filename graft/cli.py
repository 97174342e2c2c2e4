"""The command line: a thin shell over the rooms, which are imported only by the command that needs them.

Exit codes: 0 done, 1 the work failed, 2 what a person gave is wrong.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import graft
from graft.commands import registry, score
from graft.errors import GraftError, InputError

if TYPE_CHECKING:
    from graft.comparison import Comparison

MODEL = Path("models/onnx")
PROD = "prod"  # follows the registry
FOLLOW_SECONDS = 2.0
NEXT_STEPS = (
    ("graft report --open", "shows how good the model is and where it fails"),
    ("graft predict PICTURE", "asks the model"),
    ("graft serve", "answers over HTTP, with a page to try it on"),
    ("graft run -S KEY=VALUE", "changes params.yaml and runs only what follows"),
    ("graft up", "shows runs in a browser, on a Prefect server of your own"),
)
LISTED = 10  # pictures that changed sides, in the terminal

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
    targets: Annotated[
        list[str] | None, typer.Argument(help="Stages to run, with what they need; none is all.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("-S", "--set", metavar="KEY=VALUE", help="Change params.yaml first; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run stages even where nothing changed.")] = False,
    isolate: Annotated[bool, typer.Option("--isolate", help="Give each stage a process of its own.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Fail where another run holds the repository.")] = False,
) -> None:
    """Bring the project up to date: run what changed, as a Prefect flow."""
    from flows.link import Request
    from flows.run import Run

    request = Request(str(find_project()), tuple(targets or ()), force=force, isolate=isolate, wait=not no_wait)
    prepare = partial(_set_params, assignments=assignments or [])
    code = Run(request, prepare=prepare, next_steps=NEXT_STEPS).work()
    _refresh_page(Path(request.repo))
    raise typer.Exit(code)


def _refresh_page(root: Path) -> None:
    """Make the report's page again where the evaluation it was made from was restored by DVC."""
    found, page = root / "data/evaluation/evaluation.json", root / "report/index.html"
    if found.is_file() and not (page.is_file() and page.stat().st_mtime >= found.stat().st_mtime):
        from graft import report as pages

        pages.write(root)


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


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A folder, zip or tar with a folder of pictures for each class.")],
) -> None:
    """Point params.yaml at your own pictures."""
    from graft.commands import project

    project.init(find_project(), folder)


@app.command()
def pretrain(
    assignments: Annotated[
        list[str] | None,
        typer.Option("-S", "--set", metavar="KEY=VALUE", help="Where CIFAR-10 is, such as data.path; repeatable."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="About a minute each on two cores.")] = 24,
    output: Annotated[Path | None, typer.Option(help="Folder for weights and card. [default: the package's]")] = None,
) -> None:
    """Make the bundled weights again: a quarter-width VGG16 trained on CIFAR-10."""
    from graft.commands import project

    command = " ".join(
        ["graft pretrain", *(f"-S {assignment}" for assignment in assignments or []), f"--epochs {epochs}"]
    )
    project.pretrain(find_project(), assignments or [], epochs, output, command)


@app.command()
def predict(
    files: Annotated[list[Path], typer.Argument(help="Pictures: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM.")],
    model: Annotated[
        str | None, typer.Option(help="The exported file; with --url the model's name on the server.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Ask a running server, such as http://127.0.0.1:8000.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Labels a picture.")] = 3,
    provider: Annotated[str, typer.Option(help="auto, tensorrt, cuda or cpu; without --url.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8; auto is fp16 on a GPU.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a picture.")] = False,
) -> None:
    """Say what is in pictures, with the exported file or by asking a server."""
    if url is not None:
        from serving import client

        predictions = client.predict_files(url, files, top_k, model)
    else:
        from graft.inference import find_file, open_model
        from graft.prediction import predict_files

        path = Path(model) if model is not None else find_file(find_project() / MODEL, provider, precision)
        predictions = predict_files(open_model(path, provider), files, top_k)
    width = max(len(str(file)) for file in files)
    for prediction in predictions:
        if as_json:
            labels = [{"label": label, "probability": share} for label, share in prediction.labels]
            typer.echo(json.dumps({"file": prediction.name, "predictions": labels}))
        else:
            shares = "   ".join(f"{label} {share:.1%}" for label, share in prediction.labels)
            typer.echo(f"{prediction.name:<{width}}   {shares}")


@app.command()
def serve(
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="An exported file or a folder NAME/VERSION/model.onnx, repeatable; or prod, the live version."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000,
    grpc_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Answer gRPC too, by custom on 8001. [default: off]")
    ] = None,
    provider: Annotated[str, typer.Option(help="auto, tensorrt, cuda or cpu: what is asked for or an error.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32, fp16 or int8 of the project's own model; auto is fp16 on a GPU.")
    ] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Of ONNX Runtime; 0 takes every core.")] = 0,
    versions: Annotated[int, typer.Option(min=0, help="Newest versions of a folder to serve; 0 is all.")] = 1,
    follow: Annotated[float, typer.Option(min=0, help="Look for new versions every so many seconds.")] = 0,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Pictures that run together at most.")] = 32,
    max_queue_delay: Annotated[float, typer.Option(min=0, help="Seconds to wait for a fuller batch.")] = 0,
    max_queue_size: Annotated[int, typer.Option(min=1, help="Pictures that may wait.")] = 512,
    max_body: Annotated[int, typer.Option(min=1, help="Largest request in MiB.")] = 32,
    patience: Annotated[float, typer.Option(min=0.1, help="Seconds a client may take to send a request.")] = 30,
    api_keys: Annotated[
        Path | None, typer.Option(help="File of keys, one a line; without it everybody may ask.")
    ] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(help="Site whose pages may ask; repeatable.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file; with --tls-key serves HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    control: Annotated[
        bool | None,
        typer.Option("--control/--no-control", help="Load and unload by request. [default: on loopback or with keys]"),
    ] = None,
    drain: Annotated[float, typer.Option(min=0, help="Seconds from SIGTERM to the last connection.")] = 1,
    traffic: Annotated[
        Path | None,
        typer.Option(help="Folder for the sums that show drift. [default: monitoring/ of the project]"),
    ] = None,
    sample: Annotated[Path | None, typer.Option(help="Folder for samples of pictures; none are kept without.")] = None,
    sample_share: Annotated[float, typer.Option(min=0, max=1, help="Share of pictures sampled.")] = 0.01,
    access_log: Annotated[bool, typer.Option(help="A line of JSON for each request on stdout.")] = True,
) -> None:
    """Answer requests with an exported file: the Open Inference Protocol, and a page for people."""
    from graft.inference import find_file
    from serving import settings
    from serving.commands import read_keys, serve_models

    if traffic is None and model in (None, [Path(PROD)]):
        traffic = find_project() / "monitoring"
    if model == [Path(PROD)]:
        from flows.promotion import followed

        model, follow = [followed(find_project())], follow or FOLLOW_SECONDS
    serve_models(
        model or [find_file(find_project() / MODEL, provider, precision)],
        versions,
        settings.Settings(
            host=host,
            port=port,
            grpc_port=grpc_port,
            provider=provider,
            threads=threads,
            follow_seconds=follow,
            drain_seconds=drain,
            access_log=access_log,
            batching=settings.Batching(
                max_batch_size=max_batch_size, max_queue_delay=max_queue_delay, max_queue_size=max_queue_size
            ),
            limits=settings.Limits(max_body_bytes=max_body * settings.MIB, patience=patience),
            security=settings.Security(
                api_keys=read_keys(api_keys),
                cors_origins=tuple(cors_origin or ()),
                tls_certificate=tls_certificate,
                tls_key=tls_key,
                control=control,
            ),
            monitoring=settings.Monitoring(folder=traffic, sample_folder=sample, sample_share=sample_share),
        ),
    )


@app.command()
def report(
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    speed: Annotated[bool, typer.Option("--speed", help="Measure the files' speed on this machine first.")] = False,
) -> None:
    """Make the page of the last evaluation, report/index.html."""
    from graft import report as pages

    root = find_project()
    if speed:
        from graft import params
        from graft.evaluation import run as evaluation

        evaluation.measure_again(params.load(root / params.FILE), root)
    page = pages.write(root)
    typer.echo(page)
    if show:
        typer.launch(page.resolve().as_uri())


@app.command()
def compare(
    before: Annotated[str, typer.Argument(metavar="REV1", help="A commit, branch or tag.")],
    after: Annotated[
        str, typer.Argument(metavar="REV2", help="Another; the folder as it is by default.")
    ] = "workspace",
) -> None:
    """Compare two versions of the model on today's test pictures, in the terminal and as a page."""
    import tempfile

    from flows.revisions import fetch
    from graft import comparison, params
    from graft.evaluation.run import MAIN
    from graft.evaluation.study import Study
    from graft.inference import open_model

    root = find_project()
    settings = params.load(root / params.FILE)
    study = Study(root)
    file = study.model_file(MAIN).relative_to(root).as_posix()
    models = []
    for revision in (before, after):
        with tempfile.TemporaryDirectory(prefix="graft-compare-") as folder:
            path = fetch(root, file, revision, Path(folder))
            models.append(open_model(path, provider="auto", threads=settings.runtime.threads))
    found = comparison.compare(study, (models[0], models[1]), (before, after), settings.evaluate.batch_size)
    _show_comparison(found, comparison.write(study, found))


def _show_comparison(found: Comparison, page: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from graft.report.view import percent

    table = Table("Model", "Accuracy", "95 % interval", "Log loss", box=None, pad_edge=False)
    for name, accuracy, loss in zip(found.names, found.accuracy, found.log_loss, strict=True):
        table.add_row(
            name, percent(accuracy.value), f"{percent(accuracy.low)} – {percent(accuracy.high)}", f"{loss:.4f}"
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n{found.verdict}", markup=False)
    for title, moved in (
        (f"Right only with {found.names[1]}", found.won),
        (f"Right only with {found.names[0]}", found.lost),
    ):
        console.print(f"\n{title}: {len(moved)}", style="bold", markup=False)
        for picture in moved[:LISTED]:
            console.print(f"  {picture.file}  {picture.label}: {picture.before} → {picture.after}", markup=False)
        if len(moved) > LISTED:
            console.print(f"  … and {len(moved) - LISTED} more", markup=False)
    console.print(f"\nWith pictures: {page}", markup=False)


@app.command()
def doctor() -> None:
    """Say what is installed, what computes here, and how to mend what does not."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from graft.doctor import examine

    try:
        project: Path | None = find_project()
    except InputError:
        project = None
    console = Console(highlight=False)
    with console.status("Trying each provider …"):
        findings = examine(project)
    marks = {"fine": "[green]✓[/]", "absent": "[dim]–[/]", "problem": "[red]✗[/]"}
    table = Table(box=None, show_header=False, pad_edge=False)
    section = ""
    for finding in findings:
        heading = "" if finding.section == section else finding.section
        section = finding.section
        style = "dim" if finding.state == "absent" else ""
        table.add_row(
            heading, marks[finding.state], escape(finding.subject), f"[{style or 'default'}]{escape(finding.found)}[/]"
        )
        if finding.mend:
            table.add_row("", "", "", f"[bold]mend:[/] {escape(finding.mend)}")
    console.print(table)
    problems = sum(finding.state == "problem" for finding in findings)
    console.print(f"\n{problems} problem{'s' if problems != 1 else ''} found." if problems else "\nNo problems found.")
    if problems:
        raise typer.Exit(1)


registry.add(app)
score.add(app)


def main() -> None:
    """Run a command; errors a person can mend are one line on stderr."""
    try:
        app()
    except GraftError as error:
        typer.secho(f"graft: {error}", fg="red", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
