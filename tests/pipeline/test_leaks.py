"""Stages that run in one process meet nothing of each other: they write what processes of their own write."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.mark.slow
def test_in_process_and_isolated_stages_write_equal_hashes(repository):
    in_process, isolated = repository("leaky", "here"), repository("leaky", "apart")
    with ThreadPoolExecutor() as both:  # TensorFlow is imported three times: side by side
        list(both.map(lambda made, isolate: made.work(isolate=isolate), (in_process, isolated), (False, True)))
    read = [json.loads((made.root / "second.json").read_text()) for made in (in_process, isolated)]
    assert read[0] == read[1]
    assert in_process.lock() == isolated.lock()
    assert json.loads((in_process.root / "first.json").read_text())["argv"] == ["--name", "first one"]


def test_a_long_lived_process_never_runs_code_older_than_the_files(repository):
    """Two stages share a module that the first one rewrites: the second must see what is written."""
    made = repository("chain")
    made.write("work/constant.py", "VALUE = 1\n")
    rewrite = 'Path("work/constant.py").write_text("VALUE = 22\\n")'
    made.edit("work/prepare.py", 'burn.ran("end', f'from work import constant\n    {rewrite}\n    burn.ran("end')
    check = "from work import constant\n    assert constant.VALUE == 22"
    made.edit("work/extract.py", 'burn.ran("end extract")', check)
    made.work()


# Sets a variable as libraries do, then stays until another stage has told what it found.
SETS = """
import os, time
from pathlib import Path
os.environ["LEFT_BEHIND"] = "something"
Path("is-set").touch()
while not Path("told.txt").exists():
    time.sleep(0.01)
"""


def test_a_stage_beside_one_in_this_process_finds_its_own_environment(repository):
    if (os.cpu_count() or 1) < 2:
        pytest.skip("SKIPPED ALOUD: one core, on which the engine rightly runs stages one after the other")
    made = repository("chain")
    made.write("work/sets.py", SETS)
    stages = {
        "sets": {"cmd": "python -m work.sets", "deps": ["work/sets.py"]},
        "waits": {"cmd": "while [ ! -e is-set ]; do :; done; echo 1 > waited.txt", "outs": ["waited.txt"]},
        "tells": {
            "cmd": 'echo "$DVC_STAGE found:$LEFT_BEHIND" > told.part; mv told.part told.txt',
            "deps": ["waited.txt"],
            "outs": ["told.txt"],
        },
    }
    made.write("dvc.yaml", json.dumps({"stages": stages}))
    assert set(made.work().values()) == {"Ran"}
    assert (made.root / "told.txt").read_text() == "tells found:\n"
