"""The child process of the export check: runs an exported file without TensorFlow in the process.

`python -m graft.parity MODEL SAMPLES` prints one JSON object: the largest difference in probability and the
share of pictures with the same top class. SAMPLES is an `.npz` of pairs `image_i`, `expected_i`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from graft.errors import GraftError
from graft.inference import open_model


def main(model_path: str, samples_path: str) -> None:
    """Compare and print.

    Raises:
        GraftError: the file is no model of Graft's, or its answers are not numbers.
    """
    model = open_model(Path(model_path), provider="cpu")
    differences, agreements = [], []
    with np.load(samples_path, allow_pickle=False) as samples:
        for i in range(len(samples.files) // 2):
            expected = samples[f"expected_{i}"]
            received = model.predict(samples[f"image_{i}"])
            if received.shape != expected.shape or not np.isfinite(received).all():
                raise GraftError(f"shape {expected.shape} of finite numbers is wanted. Received: {received.shape}")
            differences.append(np.abs(received - expected).max())
            agreements.append(received.argmax(1) == expected.argmax(1))
    agreement = float(np.concatenate(agreements).mean())
    sys.stdout.write(json.dumps({"max_difference": float(max(differences)), "top1_agreement": agreement}) + "\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except GraftError as error:
        sys.exit(str(error))
