from pathlib import Path

from graft import params
from graft.datasets import preparation

if __name__ == "__main__":
    preparation.prepare(params.load(), Path("data/prepared"))
