import json
from pathlib import Path

from work import burn

if __name__ == "__main__":
    burn.ran("begin evaluate")
    text = Path("model.txt").read_text()
    Path("metrics.json").write_text(json.dumps({"accuracy": round(text.count("a") / len(text), 4), "lines": 6}))
    rows = ["actual,predicted"] + [f"{'cat' if i % 2 else 'dog'},{'cat' if ord(c) % 2 else 'dog'}" for i, c in enumerate(text[:80])]
    Path("confusion.csv").write_text("\n".join(rows) + "\n")
    burn.ran("end evaluate")
