"""Stage `finetune`: the unfrozen layers and the head at a lower rate, in `models/finetuned`."""

from pathlib import Path

from graft import params, runtime

if __name__ == "__main__":
    settings = params.load()
    runtime.start(settings)
    from graft import adaptation

    with runtime.training(settings):
        adaptation.finetune(
            settings, Path("data/prepared"), Path("data/features"), Path("models/head"), Path("models/finetuned")
        )
