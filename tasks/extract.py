"""Stage `extract`: the frozen network's activations of every prepared picture, in `data/features`."""

from pathlib import Path

from graft import params, runtime

if __name__ == "__main__":
    settings = params.load()
    runtime.start(settings)
    from graft import features

    features.extract(settings, Path("data/prepared"), Path("data/features"))
