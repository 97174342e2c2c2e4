"""The model registry in git and DVC: versions and stages as annotated tags, files in DVC's cache and remote.

Everything rests on one order: the data is pushed, then the commit, then the tag; a tag that can be seen can be
loaded. Tag objects are made nameless first and named last, by one atomic push where there is a git remote and by
one compare-and-swap here, so that of two writers one wins and the other takes the next number.

What servers load is a folder made from the tags: `models/served/prod/N/model.onnx`, N the number of the move.
It can be thrown away at any time; `publish` makes it anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows import revisions
from flows.faults import translated
from flows.locking import run_lock
from flows.project import open_repository, state_folder
from graft import registry
from graft.errors import GraftError, InputError
from graft.registry import PROD, Assignment, Registry, Tag, Version

MODEL = "model.fp32.onnx"  # in the artifact's folder
SERVED = Path("models/served")
PUBLISHED = "model.onnx"
KEPT = 2  # published folders: servers that have not looked yet may still read the one before
ATTEMPTS = 20  # at a number that another writer takes first

_IDENTITY = {
    f"GIT_{role}_{part}": value
    for role in ("AUTHOR", "COMMITTER")
    for part, value in (("NAME", "Graft"), ("EMAIL", "graft@localhost"))
}
_FIELD = "\x1f"
_RECORD = "\x1e"


class Taken(Exception):  # noqa: N818 - not an error: the next number is tried
    """Another writer has given this name away."""


class Store:
    """The registry of the repository at `root`."""

    def __init__(self, root: Path, remote: str | None = None, branch: str | None = None) -> None:
        self.root, self.remote, self.branch = root, remote, branch
        _check_git(root)

    @contextmanager
    def locked(self, waiting: Callable[[str], None] = lambda text: None, name: str = "registry") -> Iterator[None]:
        """One writer at a time in this folder; those in other clones are met by compare-and-swap.

        A retraining holds the lock named `retrain` throughout, and this one only while it writes: a rollback by
        hand need not wait for a night to end.
        """
        with run_lock(state_folder(self.root) / name, wait=True, waiting=waiting):
            yield

    def at_work(self) -> bool:
        """Whether a retraining of this folder is under way."""
        try:
            with run_lock(state_folder(self.root) / "retrain", wait=False, waiting=print):
                return False
        except GraftError:
            return True

    def read(self) -> Registry:
        """The registry as the tags of this clone tell it."""
        form = _FIELD.join(("%(refname:strip=2)", "%(*objectname)", "%(creatordate:iso-strict)", "%(contents)"))
        out = self._git("for-each-ref", f"--format={form}{_RECORD}", "refs/tags")
        tags = []
        for line in out.split(_RECORD):
            name, commit, created, text = [*line.strip("\n").split(_FIELD, 3), "", "", ""][:4]
            if commit:  # a lightweight tag points at no tag object, and DVC does not see it either
                tags.append(Tag(name, commit, created, text))
        return registry.read(tags)

    def fetch(self) -> None:
        """Learn the tags that other clones pushed, and where the opted-in branch is.

        Raises:
            GraftError: the git remote cannot be reached.
        """
        if self.remote is None:
            return
        # Only the registry's own tags, and never over ours: a name means one thing for ever.
        specs = [f"refs/tags/{registry.ARTIFACT}{kind}*:refs/tags/{registry.ARTIFACT}{kind}*" for kind in "@#"]
        if self.branch is not None and not self._checked_out:
            reference = f"refs/heads/{self.branch}"
            if self._git("ls-remote", self.remote, reference):
                specs.append(f"{reference}:{reference}")
        self._git("fetch", "--quiet", "--no-tags", self.remote, *specs)

    def fingerprint(self) -> str:
        """The hash of the model that dvc.lock says is in the workspace.

        Raises:
            InputError: the pipeline has made none yet.
        """
        return self._lock_hash(self.artifact, (self.root / "dvc.lock").read_text(encoding="utf-8"))

    def _lock_hash(self, path: str, text: str) -> str:
        for stage in (_yaml(text).get("stages") or {}).values():
            for out in stage.get("outs", []):
                if out["path"] == path:
                    return str(out.get("md5") or out.get("hash"))
        raise InputError(f"dvc.lock knows no {path}; `graft run` makes it")

    @property
    def artifact(self) -> str:
        """The folder or file that dvc.yaml names as the artifact `model`."""
        found = (_yaml((self.root / "dvc.yaml").read_text(encoding="utf-8")).get("artifacts") or {}).get(
            registry.ARTIFACT
        )
        if not found:
            raise InputError(
                f"dvc.yaml has no artifact {registry.ARTIFACT}; add it with the path of the exported model"
            )
        return str(found["path"])

    def producer(self, path: str) -> str:
        """The stage of dvc.yaml that writes `path`.

        Raises:
            InputError: none does.
        """
        for name, stage in (_yaml((self.root / "dvc.yaml").read_text(encoding="utf-8")).get("stages") or {}).items():
            for out in stage.get("outs") or []:
                if (out if isinstance(out, str) else next(iter(out))) == path:
                    return str(name)
        raise InputError(f"no stage of dvc.yaml writes {path}, which a retraining looks at before it trains")

    @property
    def model_file(self) -> str:
        """The served file, relative to the root."""
        return self.artifact if self.artifact.endswith(".onnx") else f"{self.artifact}/{MODEL}"

    def register(self, sentence: str, record: Mapping[str, Any]) -> Version:
        """Make the workspace's model a version: push the data, commit, then name it.

        A model that is a version already stays that one, so a run that was killed can be repeated.

        Raises:
            GraftError: the DVC remote or the git remote refuses; nothing can be seen of the attempt.
        """
        model = self.fingerprint()
        if known := self.read().with_model(model):
            return known
        self.push_data()
        for _ in range(ATTEMPTS):
            commit, before = self._commit(sentence)
            name = self.read().next_version
            tag = registry.version_tag(name)
            text = registry.message(sentence, {**record, "version": name, "model": model})
            try:
                self._name(
                    {f"refs/tags/{tag}": (self._tag_object(tag, commit, text), None), **self._move(commit, before)}
                )
            except Taken:
                self.fetch()
                continue
            self._refresh_index()
            return self.read().version(name)
        raise GraftError(f"other writers took {ATTEMPTS} version numbers in a row; try again")

    def assign(self, version: Version, sentence: str, stage: str = PROD) -> Assignment:
        """Move `stage` to `version`; nothing happens where it is there already.

        Raises:
            GraftError: the git remote refuses.
        """
        for _ in range(ATTEMPTS):
            now = self.read()
            current = now.current(stage)
            if current is not None and current.version == version.name:
                return current
            tag = registry.assignment_tag(stage, now.next_number)
            text = registry.message(sentence, {"version": version.name, "stage": stage})
            try:
                self._name({f"refs/tags/{tag}": (self._tag_object(tag, version.commit, text), None)})
            except Taken:
                self.fetch()
                continue
        raise GraftError(
            f"other writers moved {stage} {ATTEMPTS} times in a row; look with `graft versions`, try again"
        )

    def push_data(self) -> None:
        """Push what the workspace's dvc.lock names to the DVC remote, where one is set.

        Raises:
            GraftError: the remote is down or refuses.
        """
        with translated(), open_repository(self.root) as repo:
            if not repo.config["core"].get("remote"):
                return
            try:
                repo.push()
            except Exception as error:  # remotes raise what their libraries raise
                raise GraftError(
                    f"the DVC remote {repo.config['core']['remote']} takes no data ({line(error)}); "
                    "nothing was registered: try again when it is up"
                ) from error

    def file(self, version: Version, folder: Path) -> Path:
        """The version's exported file, brought into `folder` from the cache or the remote.

        Raises:
            InputError: it is in neither.
        """
        return revisions.fetch(self.root, self.model_file, version.commit, folder)

    def publish(self, check: Callable[[Path], None], stage: str = PROD) -> Path | None:
        """Bring the served folder in line with the tags; the folder, or None where the stage is nowhere yet.

        Args:
            check: raises `GraftError` where the file must not be served; nothing is published then.
            stage: whose folder.

        Raises:
            GraftError: the version's file cannot be had, or `check` refuses it.
        """
        now = self.read()
        current = now.current(stage)
        if current is None:
            return None
        home = self.root / SERVED / stage
        target = home / str(current.number)
        if not (target / PUBLISHED).is_file():
            _ignored(self.root / SERVED)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=self.root / SERVED) as temporary:
                # Named like a version inside: it appears in the server's folder whole or not at all.
                staged = Path(temporary) / target.name
                staged.mkdir()
                self.file(now.version(current.version), staged).rename(staged / PUBLISHED)
                check(staged / PUBLISHED)
                (staged / "version.json").write_text(json.dumps({"version": current.version}) + "\n", encoding="utf-8")
                home.mkdir(exist_ok=True)
                if target.exists():
                    shutil.rmtree(target)
                staged.rename(target)
        for old in sorted((p for p in home.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))[:-KEPT]:
            shutil.rmtree(old)
        return target

    def text(self, version: Version, path: str) -> str | None:
        """A text file of git as it was at `version`; None where it was not there."""
        done = self._run("show", f"{version.commit}:{path}")
        return done.stdout if done.returncode == 0 else None

    def forget(self, versions: Sequence[Version]) -> None:
        """Remove the tags of `versions` here and in the git remote; their data can then be collected."""
        commits = {version.commit for version in versions}
        form = _FIELD.join(("%(refname)", "%(*objectname)"))
        lines = (line.split(_FIELD) for line in self._git("for-each-ref", f"--format={form}", "refs/tags").splitlines())
        names = [
            name for name, commit in lines if commit in commits and name.startswith(f"refs/tags/{registry.ARTIFACT}")
        ]
        if names and self.remote is not None:
            self._git("push", "--quiet", "--atomic", self.remote, *(f":{name}" for name in names))
        self._git("update-ref", "--stdin", text="".join(f"delete {name}\n" for name in names))

    def _commit(self, sentence: str) -> tuple[str, str | None]:
        """A commit of what the pipeline ran on, made beside the user's index and branch; and the branch's tip before.

        It holds what git tracks of the run: parameters, dvc.lock, dvc.yaml, metrics, plots and changed code.
        """
        head = self._git("rev-parse", "HEAD").strip()
        tip = self._tip()
        parent = tip or head
        with tempfile.TemporaryDirectory(prefix="graft-index-") as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            self._git("read-tree", head, environment=index)
            self._git("add", "--update", environment=index)
            new = [path for path in self._paths() if (self.root / path).exists()]
            self._git("add", "--force", "--", *new, environment=index)
            tree = self._git("write-tree", environment=index).strip()
        if tree == self._git("rev-parse", f"{parent}^{{tree}}").strip() and not self._is_version(parent):
            return parent, tip
        commit = self._git("commit-tree", tree, "-p", parent, "-m", sentence, environment=self._identity())
        return commit.strip(), tip

    def _is_version(self, commit: str) -> bool:
        return any(version.commit == commit for version in self.read().versions)

    def _tip(self) -> str | None:
        """The commit that the opted-in branch is at now, in the git remote where there is one."""
        if self.branch is None:
            return None
        reference = f"refs/heads/{self.branch}"
        ours = self._run("rev-parse", "--verify", "--quiet", reference).stdout.strip()
        tip = ours
        if self.remote is not None and (listed := self._git("ls-remote", self.remote, reference).split()):
            self._git("fetch", "--quiet", "--no-tags", self.remote, reference)
            tip = listed[0]
            if ours and self._run("merge-base", "--is-ancestor", ours, tip).returncode:
                raise GraftError(
                    f"branch {self.branch} holds commits that {self.remote} does not have; push them, then try again"
                )
        if self._checked_out and tip and tip != self._git("rev-parse", "HEAD").strip():
            raise GraftError(f"branch {self.branch} has moved on in {self.remote}; pull it, then try again")
        return tip or None

    @property
    def _checked_out(self) -> bool:
        return self._run("symbolic-ref", "--quiet", "--short", "HEAD").stdout.strip() == self.branch

    def _paths(self) -> list[str]:
        """What the pipeline writes for git: parameters, lock, metrics and plots that DVC does not cache."""
        description = _yaml((self.root / "dvc.yaml").read_text(encoding="utf-8"))
        found = ["params.yaml", "dvc.lock", "dvc.yaml"]
        for stage in (description.get("stages") or {}).values():
            for kind in ("outs", "metrics", "plots"):
                for out in stage.get(kind) or []:
                    if isinstance(out, dict):
                        found += [path for path, how in out.items() if how and how.get("cache") is False]
        return found

    def _move(self, commit: str, before: str | None) -> dict[str, tuple[str, str | None]]:
        return {f"refs/heads/{self.branch}": (commit, before)} if self.branch is not None else {}

    def _refresh_index(self) -> None:
        """Where the branch is the one checked out, the index follows it: the files are the commit's already."""
        if self.branch is not None and self._checked_out:
            self._git("reset", "--quiet", "--mixed")

    def _tag_object(self, name: str, commit: str, text: str) -> str:
        """An annotated tag that nobody can see yet."""
        identity = self._git("var", "GIT_COMMITTER_IDENT", environment=self._identity()).strip()
        return self._git("mktag", text=f"object {commit}\ntype commit\ntag {name}\ntagger {identity}\n\n{text}").strip()

    def _identity(self) -> dict[str, str]:
        """The user's own name where git knows it, else ours: a machine at night may have none."""
        if os.environ.get("GIT_COMMITTER_EMAIL") or self._run("config", "user.email").returncode == 0:
            return {}
        return _IDENTITY

    def _name(self, references: Mapping[str, tuple[str, str | None]]) -> None:
        """Point names at objects, all or none: `{reference: (object, object before or None)}`.

        Raises:
            Taken: a reference is not as it was before.
            GraftError: the git remote refuses for another reason.
        """
        if self.remote is not None:
            self._push(references)
        lines = []
        for name, (new, before) in references.items():
            # Behind the remote our own branch may be, and catches up; a tag's name must be free.
            held = self._run("rev-parse", "--verify", "--quiet", name).stdout.strip() if before else ""
            lines.append(f"update {name} {new} {held or '0' * len(new)}\n")
        done = self._run("update-ref", "--stdin", text="".join(lines))
        if done.returncode:
            raise Taken(line(done.stderr))

    def _push(self, references: Mapping[str, tuple[str, str | None]]) -> None:
        specs = [f"{new}:{name}" for name, (new, _) in references.items()]
        leases = [f"--force-with-lease={name}:{before or ''}" for name, (_, before) in references.items()]
        done = self._run("push", "--porcelain", "--atomic", *leases, str(self.remote), *specs)
        if done.returncode == 0:
            return
        said = done.stdout + done.stderr
        if "stale info" in said or "already exists" in said or "fetch first" in said or "cannot lock ref" in said:
            raise Taken(said)
        raise GraftError(
            f"the git remote {self.remote} refuses ({line(done.stderr)}); the live model stays as it was: "
            "mend that and try again"
        )

    def _git(self, *arguments: str, environment: Mapping[str, str] | None = None, text: str | None = None) -> str:
        done = self._run(*arguments, environment=environment, text=text)
        if done.returncode:
            raise GraftError(f"git {arguments[0]} failed: {line(done.stderr)}")
        return done.stdout

    def _run(
        self, *arguments: str, environment: Mapping[str, str] | None = None, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *arguments],
            cwd=self.root,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", **(environment or {})},
            input=text,
            text=True,
            capture_output=True,
            check=False,
        )


def _check_git(root: Path) -> None:
    done = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "HEAD"], cwd=root, capture_output=True, check=False
    )
    if done.returncode:
        raise InputError(f"{root} has no git commit, which versions are tags on; run `git init` and `git commit` there")


def _ignored(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")


def _yaml(text: str) -> dict[str, Any]:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(text) or {}


def line(error: object) -> str:
    """The first lines of what a tool said, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("hint:")]
    return "; ".join(lines[:3])[:300] or type(error).__name__
