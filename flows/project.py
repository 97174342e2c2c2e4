"""A repository with a dvc.yaml, as a graph of stages: what there is, what would run and why, and running it.

In: a folder. Out: `Stage`s in the order `dvc repro` takes them, and `reproduce`, which leaves every
decision and every file (outputs, cache, run-cache, dvc.lock) to DVC.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flows import lockfile, reasons, results, seam
from flows.faults import translated
from graft.errors import InputError, nearest


@dataclass(frozen=True)
class Policy:
    """What a stage's `meta:` says about failing: retries, the seconds between them, and when to give up."""

    retries: int = 0
    retry_delay: float = 0.0
    timeout: float | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of the graph: `needs` is what it depends on; `reason` is None where nothing changed."""

    name: str
    needs: tuple[str, ...]
    policy: Policy
    reason: str | None
    frozen: bool
    is_data: bool


@dataclass(frozen=True)
class Outcome:
    """What happened to a stage: Ran, Restored or Unchanged, and why in one line."""

    state: str
    why: str


class Project:
    """An open repository. DVC is used by one thread at a time; while a command runs, others may.

    The current folder must be `root` for as long as it is used: DVC names stages relative to it.
    """

    def __init__(self, root: Path, folder: Path | None = None) -> None:
        """Open the repository at `root` for the dvc.yaml in `folder`, by default the root's own."""
        with translated():
            self._repo = open_repository(root)
            self.root = Path(self._repo.root_dir)
            self._folder = (folder or root).resolve()
            self._state = state_folder(self.root)
            self._journals = self._state / "running"
            self._gate = threading.Lock()
            self._load()

    def _load(self) -> None:
        from dvc.repo.reproduce import get_active_graph, plan_repro

        with self._locked():
            graph = get_active_graph(self._repo.index.graph)
            self._order = plan_repro(graph)
        self._stages = {stage.addressing: stage for stage in self._order}
        self._upstream = {name: list(graph.successors(stage)) for name, stage in self._stages.items()}
        self._producers = {out.fs_path: name for name, stage in self._stages.items() for out in stage.outs}

    def mend(self) -> None:
        """Remove what a killed run can leave half written. Only for the holder of the run lock."""
        for file in {Path(stage.path) for stage in self._order}:
            lockfile.beside(file.with_suffix(".lock")).unlink(missing_ok=True)
        paths = self.root / ".dvc" / "tmp" / "rwlock"
        with suppress(FileNotFoundError):
            try:
                json.loads(paths.read_text(encoding="utf-8"))
            except ValueError:
                paths.unlink()  # DVC rewrites it in place; cut short, it would refuse every later command
        if any(self._journals.glob("*")):
            # DVC makes a folder of its run-cache, then the entry in it; without one, the stage would fail ever after.
            for folder in Path(self._repo.stage_cache.cache_dir).glob("*/*"):
                with suppress(OSError):  # there are entries in it
                    folder.rmdir()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        from dvc.repo import lock_repo

        with self._gate, lock_repo(self._repo):
            yield

    def plan(self, targets: Iterable[str] = ()) -> list[Stage]:
        """The stages of this run in order: `targets` and what they need.

        Args:
            targets: stages, groups of foreach and matrix stages, or dvc.yaml files; without any, the one
                in the folder this was opened for, as `dvc repro` there takes it.

        Raises:
            InputError: a target or a `meta:` is unknown or wrong.
        """
        wanted = self._wanted(targets)
        with translated(), self._locked():
            return [self._describe(name) for name in self._stages if name in wanted]

    def _wanted(self, targets: Iterable[str]) -> set[str]:
        wanted: set[str] = set()
        queue = [name for target in targets for name in self._matching(target)] or self._default()
        while queue:
            name = queue.pop()
            if name not in wanted:
                wanted.add(name)
                queue += [stage.addressing for stage in self._upstream[name]]
        return wanted

    def _default(self) -> list[str]:
        """The stages of the folder's own dvc.yaml; where it has none, every stage there is."""
        return self._of_file(self._folder / "dvc.yaml") or list(self._stages)

    def _of_file(self, file: Path) -> list[str]:
        return [name for name, stage in self._stages.items() if Path(stage.path) == file]

    def _matching(self, target: str) -> list[str]:
        """A stage, the group of a foreach or matrix stage, or the stages of a dvc.yaml file."""
        here = self._folder.relative_to(self.root)
        full = target if here == Path() else f"{here}/dvc.yaml:{target}"
        names = [
            name for name in self._stages if name in (target, full) or name.startswith((f"{target}@", f"{full}@"))
        ] or self._of_file(self.root / target)
        if not names:
            raise InputError(f"no stage {target}; {nearest(target, self._stages)}")
        return names

    def _describe(self, name: str) -> Stage:
        stage = self._stages[name]
        return Stage(
            name=name,
            needs=tuple(upstream.addressing for upstream in self._upstream[name]),
            policy=_policy(name, stage.meta),
            reason=reasons.reason(stage, self._producers),
            frozen=stage.frozen,
            is_data=stage.is_data_source,
        )

    def reason(self, name: str) -> str | None:
        """Why DVC would run the stage now; None where nothing changed."""
        with translated(), self._locked():
            return reasons.reason(self._stages[name], self._producers)

    def reproduce(self, name: str, *, force: bool, began: Callable[[str], None]) -> Outcome:
        """Bring one stage up to date as `dvc repro --single-item` does.

        Args:
            name: a stage whose `needs` are up to date.
            force: run the command even where nothing changed.
            began: told why, when something is to do.
        """
        with translated(), self._locked():
            stage = self._stages[name]
            why = "forced" if force else reasons.reason(stage, self._producers)
            if why is None:
                return Outcome("Unchanged", reasons.UNCHANGED)
            began(why)
            if kept := self._keep_edited(stage):
                why += f"; the edit is kept in {kept}"
            return self._bring_up_to_date(stage, why, force)

    def _bring_up_to_date(self, stage: Any, why: str, force: bool) -> Outcome:
        journal = self._journal(stage.addressing)
        in_cache = all(not out.changed_cache() for out in stage.outs if out.use_cache)
        if stage.is_data_source and not stage.is_import and in_cache and not force and _missing(stage):
            stage.checkout()
            return Outcome("Restored", f"{why}; from the cache")
        journal.unlink(missing_ok=True)
        remote = self._repo.config["core"].get("remote")
        try:
            done = stage.reproduce(force=force, pull=bool(remote), upstream=self._upstream[stage.addressing])
        except Exception:
            if not remote or journal.exists():
                raise
            why += f"; remote {remote} cannot be reached"
            done = stage.reproduce(force=force, upstream=self._upstream[stage.addressing])
        if done:
            stage.dump(update_pipeline=False)
        ran = journal.exists()
        journal.unlink(missing_ok=True)
        if ran or (done and stage.is_import and not stage.frozen):
            return Outcome("Ran", why)
        if done and (stage.frozen or stage.is_data_source):
            return Outcome("Unchanged", f"{why}; recorded as it is, there is nothing to run")
        return Outcome(
            "Restored", f"{why}; from the cache" if in_cache or not remote else f"{why}; pulled from {remote}"
        )

    def metrics(self) -> dict[str, dict[str, Any]]:
        """The numbers at the top level of each metrics file."""
        with translated(), self._locked():
            return results.metrics(self._repo)

    def places(self) -> dict[str, Path]:
        """Where the artifacts and the report lie, relative to the root."""
        with translated(), self._locked():
            return results.places(self._repo, self._order)

    def results(self) -> results.Results:
        """What a run brought, against the last commit."""
        with translated(), self._locked():
            return results.collect(self._repo, self._order)

    @contextmanager
    def running(self, command: seam.Command) -> Iterator[None]:
        """Within, stage commands go through `command` and a journal knows which ones were under way."""

        def journalled(stage: Any, commands: list[str], folder: str, environment: dict[str, str]) -> None:
            journal = self._journal(stage.addressing)
            journal.parent.mkdir(parents=True, exist_ok=True)
            journal.touch()
            command(stage, commands, folder, environment)

        with self._repo.scm_context(quiet=True), seam.replaced(journalled, self._gate):
            yield

    def _journal(self, name: str) -> Path:
        return self._journals / quote(name, safe="")

    def _keep_edited(self, stage: Any) -> Path | None:
        """Set aside outputs that a person edited, since DVC is about to replace them; return where.

        What an interrupted run left half done, or what the cache holds anyway, is not worth keeping.
        """
        kept = None
        if not stage.cmd or stage.frozen or self._journal(stage.addressing).exists():
            return None
        for out in stage.outs:
            if out.persist or not out.hash_info or not out.exists or not out.changed_checksum():
                continue
            if self._repo.cache.local.exists(out.get_hash().value):
                continue
            kept = self._state / "edited" / os.path.relpath(out.fs_path, self.root)
            if kept.is_dir():
                shutil.rmtree(kept)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(out.fs_path, kept)
        return kept.relative_to(self.root) if kept else None


def state_folder(root: Path) -> Path:
    """Where the engine keeps its own files: inside DVC's temporary folder, which git ignores."""
    return root / ".dvc" / "tmp" / "graft"


def find_root(folder: Path) -> Path:
    """The DVC repository that holds `folder`.

    Raises:
        InputError: there is none.
    """
    for candidate in (folder.resolve(), *folder.resolve().parents):
        if (candidate / ".dvc").is_dir():
            return candidate
    raise InputError(f"{folder.resolve()} is not in a DVC repository; run `git init` and `dvc init` there first")


def in_git(root: Path) -> bool:
    """Whether a git repository holds `root`."""
    return any((folder / ".git").exists() for folder in (root, *root.parents))


def open_repository(root: Path) -> Any:
    """DVC's repository at `root`, quiet; a context manager."""
    from dvc.repo import Repo

    for name in ("dvc", "dvc_objects", "dvc_data"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # the engine speaks; DVC's bars obey this too
    config = None if in_git(root) else {"core": {"no_scm": True}}
    return Repo(os.fspath(root), config=config, _wait_for_lock=True)


def _missing(stage: Any) -> bool:
    return any(out.hash_info and not out.exists for out in stage.outs)


_POLICY = {"retries": int, "retry_delay": (int, float), "timeout": (int, float)}


def _policy(name: str, meta: Any) -> Policy:
    given = meta if isinstance(meta, dict) else {}
    known = {key: value for key, value in given.items() if key in _POLICY}
    for key, value in known.items():
        if isinstance(value, bool) or not isinstance(value, _POLICY[key]) or value < 0:  # type: ignore[arg-type]
            raise InputError(f"stage {name}: meta.{key} must be a number of at least 0. Received: {value!r}")
    return Policy(**known)
