from pathlib import Path

from work import burn

if __name__ == "__main__":
    burn.ran("begin prepare")
    seed = Path("seed.txt").read_text().strip()
    burn.write_parts(Path("prepared"), [f"{seed} {i}" for i in range(6)])
    print("prepared 6 parts")
    burn.ran("end prepare")
