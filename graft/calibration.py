"""Temperature scaling: one number that makes a network's confidence honest (Guo et al. 2017).

In: probabilities (N×C) and labels (N) of pictures that no training saw, the validation split. Out: the
temperature T by which logits are divided; above 1 the network was too sure, below 1 too shy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LOWEST, HIGHEST = 0.1, 10.0
# A belief that T is near 1, worth little beside hundreds of pictures. Without it a few pictures that are all
# right would be answered with "as sure as you like".
PRIOR_DEVIATION = 0.5
TINY = 1e-30  # softmax can give an exact 0; far below any float32 probability that means something


def fit_temperature(probabilities: Array, labels: Array) -> float:
    """The T in [0.1, 10] with the least log loss of `apply_temperature(probabilities, T)` against `labels`.

    Probabilities serve as well as logits: a softmax forgets only a constant, and scaling restores it. A weak
    log-normal prior keeps T near 1 where there are only a few pictures.
    """
    from scipy.optimize import minimize_scalar

    logits = _logits(probabilities)
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        scaled = _log_softmax(logits / np.exp(log_t))
        return float(-scaled[rows, labels].sum() + 0.5 * (log_t / PRIOR_DEVIATION) ** 2)

    best = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(best.x))


def apply_temperature(probabilities: Array, temperature: float) -> Array:
    """The probabilities (N×C float64) that the same network gives with its logits divided by `temperature`."""
    return np.asarray(np.exp(_log_softmax(_logits(probabilities) / temperature)))


def _logits(probabilities: Array) -> Array:
    return np.asarray(np.log(np.clip(probabilities.astype(np.float64), TINY, None)))


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
