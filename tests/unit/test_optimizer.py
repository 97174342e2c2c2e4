"""The optimizer computes what Keras' own AdamW computes."""

from __future__ import annotations

import keras
import numpy as np

from graft import optimizer

STEPS = 5


def trained(chosen: keras.optimizers.Optimizer) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    variables = [
        keras.Variable(rng.normal(size=shape).astype(np.float32), name=name)
        for name, shape in (("kernel", (30, 20)), ("bias", (20,)))
    ]
    for _ in range(STEPS):
        # The second gradient is shorter than the norm allowed, the first one is not.
        gradients = [rng.normal(size=(30, 20)), 0.01 * rng.normal(size=20)]
        chosen.apply([keras.ops.convert_to_tensor(g.astype(np.float32)) for g in gradients], variables)
    return [np.asarray(variable) for variable in variables]


def test_steps_are_those_of_keras_adamw() -> None:
    schedule = keras.optimizers.schedules.CosineDecay(0.05, STEPS)
    plain = keras.optimizers.AdamW(schedule, weight_decay=0.3, clipnorm=1.0)
    plain.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    for mine, theirs in zip(trained(optimizer.adamw(schedule, 0.3, 1.0)), trained(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
