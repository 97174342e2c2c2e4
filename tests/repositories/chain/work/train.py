import logging
from pathlib import Path
from types import SimpleNamespace

from work import burn

if __name__ == "__main__":
    burn.ran("begin train")
    text = "".join(path.read_text() for path in sorted(Path("features").glob("*.txt")))
    rate = next(line for line in Path("params.yaml").read_text().splitlines() if "learning_rate" in line)
    with open("model.txt", "w") as model:
        for step in range(1, 7):
            model.write(burn.digest(f"{rate} {step} {text}") + "\n")
            model.flush()
            state = SimpleNamespace(
                description="train", done=step, total=6, unit="steps", rate=9.0, seconds_left=float(6 - step), note=""
            )
            logging.getLogger("graft.progress").info("step %d", step, extra={"progress": state})
    burn.ran("end train")
