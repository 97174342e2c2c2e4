"""What a run leaves on its page in Prefect: tables, pictures, a link to the report, and live progress."""

from __future__ import annotations

import time
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.events import Advanced, Reported

# A page refreshes no faster; each update is a request to the server.
INTERVAL_SECONDS = 2.0


class ProgressArtifact:
    """The progress of a stage's loops on its task run's page, one artifact for each loop."""

    def __init__(self) -> None:
        self._known: dict[str, UUID] = {}
        self._updated = float("-inf")

    def update(self, state: Advanced) -> None:
        """Show how far a loop is, at most every two seconds and always at its end."""
        now = time.monotonic()
        if state.done < state.total and now - self._updated < INTERVAL_SECONDS:
            return
        self._updated = now
        percent = 100.0 * state.done / state.total if state.total else 100.0
        text = state.text()
        if state.description in self._known:
            update_progress_artifact(self._known[state.description], percent, text)
        else:
            known = create_progress_artifact(percent, description=text)
            # A coroutine only where an event loop runs; a stage's thread has none.
            self._known[state.description] = cast(UUID, known)


def publish(report: Reported) -> None:
    """Create the run's artifacts. Inside the flow run."""
    create_table_artifact(_cells(report.summary["stages"]), key="stages", description="Stages")
    if report.metrics:
        create_table_artifact(_cells(report.metrics), key="metrics", description="Metrics")
    if report.params:
        create_table_artifact(_cells(report.params), key="parameters", description="Parameters that changed")
    for name, picture in report.pictures.items():
        create_image_artifact(picture, key=name, description=name.replace("-", " "))
    if report.brief:
        create_markdown_artifact(report.brief, key="summary", description="The evaluation in short")
    if report.report:
        create_link_artifact(report.report, link_text="The report", key="report")


def _cells(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: "" if value is None else value for key, value in row.items()} for row in rows]
