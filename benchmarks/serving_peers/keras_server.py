"""What a tutorial does, a FastAPI handler around `keras.predict`: `python keras_server.py PORT WIDTH`."""

import sys

import keras
import numpy as np
import uvicorn
from fastapi import FastAPI

from benchmarks.serving_models import BLOCKS, CLASSES, HIDDEN

PORT, WIDTH = int(sys.argv[1]), float(sys.argv[2])


def network():
    layers = [keras.Input((32, 32, 3))]
    for count, filters in BLOCKS:
        layers += [
            keras.layers.Conv2D(round(filters * WIDTH), 3, padding="same", activation="relu") for _ in range(count)
        ]
        layers.append(keras.layers.MaxPooling2D())
    layers += [keras.layers.Flatten(), keras.layers.Dense(HIDDEN, activation="relu")]
    return keras.Sequential([*layers, keras.layers.Dense(len(CLASSES), activation="softmax")])


app = FastAPI()
model = network()


@app.post("/predict")
def predict_(document: dict) -> dict:
    images = np.asarray([document["image"]], np.float32)[..., ::-1] - [103.939, 116.779, 123.68]
    return {"probabilities": model.predict(images, verbose=0)[0].tolist()}


uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="error", access_log=False)
