from pathlib import Path

if __name__ == "__main__":
    numbers = [int(line) for line in Path("../raw/numbers.txt").read_text().split()]
    Path("even.txt").write_text("".join(f"{n}\n" for n in numbers if n % 2 == 0))
