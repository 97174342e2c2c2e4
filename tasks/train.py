"""Stage `train`: a new head on the frozen features, in `models/head`."""

from pathlib import Path

from graft import params, runtime

if __name__ == "__main__":
    settings = params.load()
    runtime.start(settings)
    from graft import heads

    with runtime.training(settings):
        heads.train(settings, Path("data/prepared"), Path("data/features"), Path("models/head"))
