"""LitServe with the same file, batches of 32; `python litserve_server.py MODEL PORT THREADS DELAY`."""

import sys

import litserve
import numpy as np
import onnxruntime

MODEL, PORT, THREADS, DELAY = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])


class Classifier(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self.session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):
        return np.asarray(request["image"], np.uint8)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, images):
        return self.session.run(["probabilities"], {"image": images})[0]

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    api = Classifier(max_batch_size=32, batch_timeout=DELAY)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=1, log_level="error", generate_client_file=False)
