"""The private parts of DVC that the engine replaces, pinned: an upgrade that moves them fails here first."""

from __future__ import annotations

import inspect

import dvc.dvcfile
import dvc.repo
import dvc.stage.run
import dvc.utils.serialize._yaml
import pytest

from flows import seam


def test_dvc_runs_a_stages_command_through_cmd_run():
    assert list(inspect.signature(dvc.stage.run.cmd_run).parameters) == ["stage", "dry", "run_env"]
    source = inspect.getsource(dvc.stage.run.run_stage)
    assert "run = cmd_run if dry else unlocked_repo(cmd_run)" in source
    assert "run(stage, dry=dry, run_env=run_env)" in source


def test_dvc_releases_its_lock_around_the_command():
    from dvc.stage.decorators import unlocked_repo

    source = inspect.getsource(unlocked_repo)
    assert source.index("lock.unlock()") < source.index("f(stage") < source.index("lock.lock()")


def test_dvc_counts_its_locks_depth():
    assert "repo._lock_depth" in inspect.getsource(dvc.repo.lock_repo)


def test_dvc_writes_the_lock_file_through_modify_data():
    source = inspect.getsource(dvc.utils.serialize._yaml.modify_yaml)
    assert "with _modify_data(path, parse_yaml_for_update, _dump, fs=fs) as d:" in source
    source = inspect.getsource(dvc.dvcfile.Lockfile.dump_stages)
    assert "with modify_yaml(self.path, fs=self.repo.fs) as data:" in source
    assert 'data["stages"].update(stage_data)' in source  # an entry is replaced, never changed in place


def test_dvc_names_the_holder_of_a_path_when_it_locks_it():
    from dvc.stage import decorators

    source = inspect.getsource(decorators)
    assert "from dvc.rwlock import rwlock" in source
    assert "info = {" in inspect.getsource(__import__("dvc.rwlock", fromlist=["rwlock"]).rwlock)


def test_the_seam_fits_the_installed_dvc():
    assert seam.misfit() is None


@pytest.mark.parametrize(
    ("name", "stand_in"),
    [
        ("cmd_run", lambda stage, dry=False: None),
        ("run_stage", lambda stage, dry=False, force=False, run_env=None: None),
        ("prepare_kwargs", None),
    ],
)
def test_a_dvc_that_moved_is_noticed(monkeypatch, name, stand_in):
    monkeypatch.setattr(dvc.stage.run, name, stand_in)
    assert name in seam.misfit()


def test_where_the_seam_does_not_fit_stages_run_isolated_with_a_warning(repository):
    made = repository("chain")
    made.write(
        "moved/sitecustomize.py",
        "import dvc.stage.run as run\n"
        "real = run.cmd_run\n"
        "def cmd_run(stage, dry=False, run_env=None, novelty=None):\n"
        "    return real(stage, dry=dry, run_env=run_env)\n"
        "run.cmd_run = cmd_run\n",
    )
    made.environment["PYTHONPATH"] += f":{made.root / 'moved'}"
    out = made.graft("run")
    assert "running every stage isolated" in out
    assert set(made.states(out).values()) == {"Ran"}
    assert "up to date" in made.dvc("repro")
