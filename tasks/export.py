"""Stage `export`: the trained network as ONNX files in `models/onnx`."""

from pathlib import Path

from graft import params, runtime

if __name__ == "__main__":
    settings = params.load()
    runtime.start(settings)
    from graft import provenance
    from graft.export import stage

    lock = provenance.lock_hash(Path("dvc.lock"), ("prepare", "extract", "train", "finetune"))
    stage.export(settings, Path("data/prepared"), Path("models/finetuned"), Path("models/onnx"), lock)
