"""A little real work in steps, so that a stage can be met half done."""

import hashlib
from pathlib import Path


def ran(line):
    with open("ran.log", "a") as log:
        log.write(line + "\n")


def digest(text, rounds=30000):
    value = text.encode()
    for _ in range(rounds):
        value = hashlib.sha256(value).digest()
    return value.hex()


def write_parts(folder, texts):
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        Path(folder, f"{number}.txt").write_text(digest(text) + "\n")
