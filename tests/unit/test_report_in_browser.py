"""The page in a real headless Chromium: its script runs, its parts answer, it fits a phone."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from absent import absent
from chromium import FLAGS

pytestmark = pytest.mark.browser
# Acts as a person would, then leaves what it saw in the page's title.
PROBE = """
const seen = {};
seen.narrow = document.documentElement.scrollWidth <= innerWidth;
seen.first = document.querySelector("#cell h3").textContent;
const hit = document.querySelector('.matrix button[data-cell="3,3"]');
hit.click();
seen.cell = document.querySelector("#cell h3").textContent;
seen.thumbs = document.querySelectorAll("#cell .pic").length;
hit.focus();
hit.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true }));
seen.moved = document.activeElement.dataset.cell;
const recall = document.querySelectorAll(".sortable thead button")[3];
recall.click();
seen.down = [...document.querySelectorAll(".sortable tbody tr")].map((row) => Number(row.children[3].dataset.value));
recall.click();
seen.up = [...document.querySelectorAll(".sortable tbody tr")].map((row) => Number(row.children[3].dataset.value));
const plane = document.getElementById("plane");
plane.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
seen.point = document.querySelector("#point .file").title;
const heat = document.querySelector("canvas[data-heat]");
seen.heat = heat.getContext("2d").getImageData(0, 0, heat.width, heat.height).data.some((value) => value > 0);
const paper = getComputedStyle(document.body).backgroundColor;
document.getElementById("theme").click();
seen.themed = paper !== getComputedStyle(document.body).backgroundColor;
seen.unnamed = [...document.querySelectorAll("button, a, canvas[tabindex], .pic")].filter(
  (node) => !(node.textContent.trim() || node.getAttribute("aria-label"))).length;
document.body.dataset.seen = JSON.stringify(seen);
"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        absent("no Chromium on this machine, the page was not tried in a browser")
    return found


def visit(browser: str, page: Path, profile: Path, width: int) -> tuple[dict[str, object], str]:
    """What the probe saw on `page` in a window of `width` pixels, and what the console said."""
    html = page.read_text(encoding="utf-8")
    probed = profile / f"probed-{width}.html"
    probed.write_text(html.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    command = [
        browser,
        *FLAGS,
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        f"--window-size={width},900",
        "--dump-dom",
    ]
    done = subprocess.run([*command, probed.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    seen = done.stdout.split('data-seen="', 1)[1].split('"', 1)[0].replace("&quot;", '"')
    return json.loads(seen), "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_the_page_answers_to_mouse_and_keys(browser: str, evaluated: Path, tmp_path: Path) -> None:
    seen, console = visit(browser, evaluated / "report/index.html", tmp_path, 1280)
    record = json.loads((evaluated / "data/evaluation/evaluation.json").read_text(encoding="utf-8"))
    counts = record["confusion"]["counts"]
    assert console == ""
    assert " taken for " in str(seen["first"])
    assert seen["cell"] == f"{counts[3][3]} × 3, found"
    assert seen["thumbs"] == len(record["confusion"]["cells"]["3,3"])
    assert seen["moved"] != "3,3"
    recalls = [row["recall"] for row in record["per_class"]]
    assert seen["down"] == pytest.approx(sorted(recalls, reverse=True))
    assert seen["up"] == pytest.approx(sorted(recalls))
    assert seen["point"] == record["pictures"]["items"][record["map"]["points"][0][2]]["file"]
    assert seen["heat"] is True
    assert seen["themed"] is True
    assert seen["unnamed"] == 0


def test_the_page_fits_a_phone(browser: str, evaluated: Path, tmp_path: Path) -> None:
    seen, console = visit(browser, evaluated / "report/index.html", tmp_path, 500)
    assert console == ""
    assert seen["narrow"] is True
