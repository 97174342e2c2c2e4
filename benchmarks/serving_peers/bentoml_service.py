"""BentoML with the same file, batches of 32: MODEL=… THREADS=… bentoml serve bentoml_service:Classifier."""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1, traffic={"timeout": 60})
class Classifier:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=60000)
    def predict(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(["probabilities"], {"image": np.asarray(images, np.uint8)})[0]
