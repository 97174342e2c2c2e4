from pathlib import Path

from work import burn

if __name__ == "__main__":
    burn.ran("begin extract")
    parts = sorted(Path("prepared").glob("*.txt"))
    burn.write_parts(Path("features"), [path.read_text() for path in parts])
    burn.ran("end extract")
