"""How two registered models differ: in data, parameters and metrics.

In: what the registry recorded of each. Out: rows for a table, only of what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Facts = dict[str, dict[str, Any]]


def facts(record: Mapping[str, Any], parameters: str | None) -> Facts:
    """The three subjects of a version, flat: `{"data": {...}, "parameters": {...}, "metrics": {...}}`."""
    from ruamel.yaml import YAML

    loaded = YAML(typ="safe", pure=True).load(parameters) if parameters else {}
    images = dict(record.get("images") or {})
    data = {"fingerprint": str(record.get("data"))[:12], "test pictures": record.get("test_images")}
    return {
        "data": {**data, **{f"pictures of {name}": count for name, count in images.items()}},
        "parameters": flatten(loaded or {}),
        "metrics": dict(record.get("metrics") or {}) | {"accuracy": record.get("accuracy")},
    }


def rows(before: Facts, after: Facts) -> list[tuple[str, str, str, str]]:
    """Subject, name, and both values, where these differ."""
    found = []
    for subject in before:
        names = list(dict.fromkeys([*before[subject], *after[subject]]))
        for name in names:
            old, new = before[subject].get(name), after[subject].get(name)
            if old != new:
                found.append((subject, name, _shown(old), _shown(new)))
    return found


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
