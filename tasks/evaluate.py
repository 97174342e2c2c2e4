"""Stage `evaluate`: the exported files on the test pictures, in `metrics.json`, `plots` and `data/evaluation`."""

from pathlib import Path

from graft import params

if __name__ == "__main__":
    settings = params.load()
    from graft.evaluation.run import run

    run(settings, Path())
