import json
from pathlib import Path

import numpy as np

from graft.evaluation.study import Study
from graft.inference import open_model

if __name__ == "__main__":
    study = Study(Path())
    model = open_model(Path("models/onnx/model.fp32.onnx"), "cpu")
    found = np.concatenate([model.predict(batch) for batch in study.images("test").batches(256)])
    accuracy = float((found.argmax(axis=1) == study.labels("test")).mean())
    Path("metrics.json").write_text(json.dumps({"accuracy": accuracy}))
