"""Versions and stages in a real git and DVC repository: whole after a kill at any step, and never lost."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import deliveries
import numpy as np
import pytest
from conftest import Repository

from flows import judging, promotion, pruning, registry
from flows.look import inside, look
from flows.project import open_repository
from flows.registry import Store
from graft import params
from graft.errors import GraftError
from graft.evaluation.study import Study
from graft.inference import open_model
from graft.traffic import Traffic


def settings(project: Repository) -> params.Params:
    return params.load(project.root / params.FILE)


def register(project: Repository, store: Store) -> Any:
    decision, record = judging.judge(Study(project.root), store, None, settings(project))
    return store.register(decision.why, record)


def go_live(project: Repository, store: Store) -> None:
    """What a night does once the gate said yes."""
    version = register(project, store)
    promotion.promote(store, version, "because", ())


def another_model(project: Repository, night: str = "two", cast: float = 0.0) -> None:
    """New data, and the pipeline run on it."""
    deliveries.deliver(project, night, cast=cast)
    deliveries.bring_up_to_date(project)


def bare(project: Repository, folder: Path) -> Path:
    """A git remote named origin."""
    project.run("git", "init", "-q", "--bare", str(folder))
    project.run("git", "remote", "add", "origin", str(folder))
    project.run("git", "push", "-q", "origin", "main")
    return folder


def check_whole(project: Repository, store: Store) -> None:
    """No version without its data in the remote, and no prod that cannot be loaded."""
    now = store.read()
    remote = project.root.parent / "store"
    for version in now.versions:
        fingerprint = str(version.record["model"])
        assert (remote / "files/md5" / fingerprint[:2] / fingerprint[2:]).is_file()
    home = project.root / registry.SERVED / "prod"
    for folder in home.iterdir() if home.is_dir() else []:
        open_model(folder / registry.PUBLISHED, "cpu")


def test_a_version_is_what_gto_and_dvc_read_and_a_fresh_clone_can_load(project: Repository, tmp_path: Path) -> None:
    store = Store(project.root)
    before = project.run("git", "status", "--porcelain"), project.run("git", "rev-parse", "HEAD")
    go_live(project, store)
    assert (project.run("git", "status", "--porcelain"), project.run("git", "rev-parse", "HEAD")) == before
    assert "v1.0.0" in project.run(str(Path(sys.executable).with_name("gto")), "show", "model")
    clone = tmp_path / "clone"
    project.run("git", "clone", "-q", str(project.root), str(clone))
    Repository(clone, project.environment).dvc("artifacts", "get", ".", "model", "--stage", "prod", "-o", "got")
    assert (clone / "got/model.fp32.onnx").read_bytes() == deliveries.live(project).read_bytes()


STEPS = [
    (Store, "push_data", "before"),
    (Store, "push_data", "after"),
    (Store, "_commit", "after"),
    (Store, "_push", "after"),
    (Store, "_name", "after"),
    (Store, "assign", "before"),
    (Store, "assign", "after"),
    (Store, "file", "after"),
    (Store, "publish", "after"),
]


@pytest.mark.parametrize(("owner", "name", "when"), STEPS, ids=[f"{when} {name}" for _, name, when in STEPS])
def test_killed_at_any_step_and_run_again_it_ends_in_one_state(
    project: Repository, tmp_path: Path, owner: type, name: str, when: str
) -> None:
    bare(project, tmp_path / "origin")
    store = Store(project.root, remote="origin", branch="live")
    child = os.fork()
    if child == 0:
        try:
            _die_at(owner, name, when)
            go_live(project, store)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the step was not reached"
    check_whole(project, store)
    store.fetch()
    promotion.settle(store, ())
    go_live(project, store)
    check_whole(project, store)
    assert deliveries.tags(project) == ["model#prod#1", "model@v1.0.0"]
    there = project.run("git", "ls-remote", "--tags", "--refs", "origin").split()[1::2]
    assert [name.removeprefix("refs/tags/") for name in there] == ["model#prod#1", "model@v1.0.0"]
    branch, version = project.run("git", "rev-parse", "live", "model@v1.0.0^{}").split()
    assert branch == version
    assert deliveries.live(project).parent.name == "1"


def _die_at(owner: type, name: str, when: str) -> None:
    original = getattr(owner, name)

    def deadly(*arguments: Any, **options: Any) -> Any:
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, deadly)


def test_a_registered_model_that_was_not_promoted_is_promoted_by_the_next_look(project: Repository) -> None:
    store = Store(project.root)
    assert look(store, settings(project)).judge
    version = register(project, store)
    found = look(store, settings(project))
    assert found.resume == version
    promotion.promote(store, version, "because", ())
    found = look(store, settings(project))
    assert not found.something, found.why


def test_a_model_rolled_back_by_hand_is_not_promoted_again(project: Repository) -> None:
    store = Store(project.root)
    go_live(project, store)
    another_model(project)
    go_live(project, store)
    promotion.rollback(store, ())
    assert not look(store, settings(project)).something


def test_new_pictures_at_an_imports_source_are_seen(project: Repository, tmp_path: Path) -> None:
    source, away = tmp_path / "source", tmp_path / "away"
    (project.root / "data/raw").rename(source)
    with inside(project.root), open_repository(project.root) as repo:
        repo.imp_url(str(source), "data/raw")
    store = Store(project.root)
    go_live(project, store)
    assert not look(store, settings(project)).something
    shutil.copy(source / "train/moss/moss000.png", source / "train/moss/once more.png")
    assert "data/raw" in look(store, settings(project)).stages["prepare"]
    source.rename(away)
    with pytest.raises(GraftError, match=r"the source of data/raw\.dvc cannot be looked at"):
        look(store, settings(project))


def test_what_is_served_is_compared_with_the_test_pictures(project: Repository) -> None:
    store = Store(project.root)
    go_live(project, store)
    model = open_model(deliveries.live(project), "cpu")
    dark = np.random.default_rng(1).integers(0, 60, (200, 32, 32, 3), dtype=np.uint8)
    served = Traffic(model.classes)
    served.add(dark, model.predict(dark))
    project.write("monitoring/prod/1/2026-01-02.8000.json", json.dumps(served.as_json()))
    found = look(store, settings(project))
    assert not found.something
    assert "what is served drifted" in found.why
    assert "red, green, blue" in found.why


def test_a_dvc_remote_that_is_down_leaves_no_trace_and_a_retry_works(project: Repository) -> None:
    store = Store(project.root)
    place = project.root.parent / "store"
    place.write_text("no folder")
    with pytest.raises(GraftError, match="the DVC remote store takes no data"):
        go_live(project, store)
    assert deliveries.tags(project) == []
    place.unlink()
    go_live(project, store)
    check_whole(project, store)


def test_a_git_remote_that_refuses_leaves_no_trace_and_a_retry_works(project: Repository, tmp_path: Path) -> None:
    origin = bare(project, tmp_path / "origin")
    store = Store(project.root, remote="origin")
    go_live(project, store)
    another_model(project)
    hook = origin / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\necho 'the door is shut' >&2\nexit 1\n")
    hook.chmod(0o755)
    before = deliveries.tags(project)
    with pytest.raises(GraftError, match=r"the git remote origin refuses .*the door is shut"):
        go_live(project, store)
    assert deliveries.tags(project) == before
    assert deliveries.live(project).parent.name == "1"
    hook.unlink()
    go_live(project, store)
    assert store.read().current() is not None
    assert deliveries.tags(project, "model@*") == ["model@v1.0.0", "model@v1.1.0"]


def test_two_clones_at_once_get_a_version_each(project: Repository, tmp_path: Path) -> None:
    bare(project, tmp_path / "origin")
    go_live(project, Store(project.root, remote="origin"))
    twin = Repository(tmp_path / "twin" / "project", project.environment)
    shutil.copytree(project.root, twin.root, symlinks=True)
    children = []
    for number, clone in enumerate((project, twin)):
        another_model(clone, f"night {number}")
        if (child := os.fork()) == 0:
            status = 1
            try:
                register(clone, Store(clone.root, remote="origin"))
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    for clone in (project, twin):
        store = Store(clone.root, remote="origin")
        store.fetch()
        models = {version.name: version.record["model"] for version in store.read().versions}
        assert sorted(models) == ["v1.0.0", "v1.1.0", "v1.2.0"]
        assert len(set(models.values())) == 3


def test_a_champion_that_no_longer_loads_is_said_and_left(project: Repository, tmp_path: Path) -> None:
    store = Store(project.root)
    go_live(project, store)
    before = deliveries.tags(project)
    shutil.rmtree(project.root / ".dvc/cache")
    shutil.rmtree(project.root.parent / "store")
    with pytest.raises(GraftError, match=r"the live model v1\.0\.0 no longer loads"):
        judging.champion(store, tmp_path, settings(project))
    assert deliveries.tags(project) == before


class _Unwell(http.server.BaseHTTPRequestHandler):
    """A server that cannot load what it is told to load."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"error": "out of memory"}'
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_server_that_is_unwell_with_the_new_model_rolls_it_back(project: Repository) -> None:
    store = Store(project.root)
    go_live(project, store)
    old = deliveries.live(project).read_bytes()
    another_model(project)
    version = register(project, store)
    with http.server.HTTPServer(("127.0.0.1", 0), _Unwell) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            with pytest.raises(GraftError, match="out of memory"):
                promotion.promote(store, version, "because", [url])
        finally:
            server.shutdown()
            thread.join()
    current = store.read().current()
    assert current is not None
    assert current.version == "v1.0.0"
    assert deliveries.live(project).read_bytes() == old


def test_the_branch_of_ones_choice_gets_the_commits_and_stays_clean(project: Repository) -> None:
    store = Store(project.root, branch="main")
    go_live(project, store)
    assert project.run("git", "rev-parse", "main") == project.run("git", "rev-parse", "model@v1.0.0^{}")
    assert project.run("git", "status", "--porcelain") == ""
    committed = project.run("git", "show", "--name-only", "--format=", "main").split()
    assert committed == ["dvc.lock", "metrics.json"]


def test_pruning_keeps_what_versions_and_stages_need(project: Repository) -> None:
    store = Store(project.root)
    go_live(project, store)
    for night, cast in (("two", 0.6), ("three", 0.3), ("four", 0.0)):
        another_model(project, night, cast)
        register(project, store)
    # prod is at the oldest; of the others the newest is kept.
    planned = pruning.prune(store, 1, dry=True, cloud=False)
    assert [version.name for version in planned.versions] == ["v1.1.0", "v1.2.0"]
    assert len(store.read().versions) == 4
    found = pruning.prune(store, 1, dry=False, cloud=True)
    assert found.bytes > 0
    assert [version.name for version in store.read().versions] == ["v1.0.0", "v1.3.0"]
    shared, cache = project.root.parent / "store", project.root / ".dvc/cache"
    hidden = shared.rename(shared.with_name("hidden"))
    for version in store.read().versions:
        promotion.prove(store, version)
    shutil.rmtree(cache)
    hidden.rename(shared)
    for version in store.read().versions:
        promotion.prove(store, version)
    assert store.read().next_version == "v1.4.0"


def test_a_folder_without_commits_is_told_so(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    with pytest.raises(GraftError, match="no git commit"):
        Store(tmp_path)
