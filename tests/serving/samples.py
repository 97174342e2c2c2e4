"""Pictures of one colour and the requests that carry them."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from PIL import Image


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (64, 48), kind: str = "PNG") -> bytes:
    """An encoded picture of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


RED, GREEN, BLUE = (250, 10, 20), (10, 240, 20), (5, 10, 250)
PIXELS = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in (RED, GREEN, BLUE)])


def infer_body(images: np.ndarray[Any, Any] = PIXELS) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": list(images.shape),
        "parameters": {"binary_data_size": images.size},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + images.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def form(*pictures: tuple[str, bytes], **fields: str) -> tuple[bytes, dict[str, str]]:
    parts = [
        f'--edge\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    for name, data in pictures:
        head = f'--edge\r\ncontent-disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + data + b"\r\n")
    return b"".join(parts) + b"--edge--\r\n", {"content-type": "multipart/form-data; boundary=edge"}
