"""The page in a real browser: a picture in, bars and a heat map out, by mouse, keyboard and on a phone."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from absent import absent
from chromium import FLAGS
from PIL import Image
from samples import BLUE, picture
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from servers import Server, serving

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        absent("no chromium and chromedriver here, the page was not tested")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    environment = {**os.environ, "TZ": "UTC", "LANGUAGE": "en_US"}
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver, env=environment))
    yield chrome
    chrome.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, server: Server) -> webdriver.Chrome:
    browser.set_window_size(1200, 900)
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)  # read once, forgotten: only this page's records are wanted
    browser.get(server.url)
    wait(browser, lambda: text(browser, "state-text") == "Ready")
    return browser


def wait(browser: webdriver.Chrome, condition: object) -> None:
    WebDriverWait(browser, 30).until(lambda _: condition())  # type: ignore[operator]


def text(browser: webdriver.Chrome, identifier: str) -> str:
    return browser.find_element(By.ID, identifier).text


def give(browser: webdriver.Chrome, path: Path) -> None:
    browser.find_element(By.ID, "file").send_keys(str(path))


@pytest.fixture
def half_blue(tmp_path: Path) -> Path:
    """Grey but for its right half, which is blue."""
    image = Image.new("RGB", (200, 120), (60, 60, 60))
    image.paste(BLUE, (100, 0, 200, 120))
    path = tmp_path / "half.png"
    image.save(path)
    return path


def test_a_picture_gets_bars_and_a_heat_map(page: webdriver.Chrome, half_blue: Path) -> None:
    give(page, half_blue)
    wait(page, lambda: "with-heat" in page.find_element(By.ID, "frame").get_attribute("class"))
    assert text(page, "verdict").startswith("blue, ")
    bars = page.find_elements(By.CSS_SELECTOR, "#bars button")
    assert next(bar.get_attribute("data-label") for bar in bars) == "blue"
    assert text(page, "heat-text") == "What speaks most for “blue” is on the right of the picture."
    assert_painted_on_the_right(page)


def assert_painted_on_the_right(page: webdriver.Chrome) -> None:
    painted = page.execute_script(
        "const c = document.getElementById('heat'); const g = c.getContext('2d');"
        "const at = (x) => g.getImageData(c.width * x, c.height / 2, 1, 1).data;"
        "return [at(0.2)[0], at(0.8)[0]];"
    )
    assert painted[1] > painted[0] + 50


@pytest.fixture
def held(half_blue: Path) -> Iterator[tuple[str, threading.Event]]:
    """Where the picture lies for a browser, which gets it once the event is set."""
    let = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            let.wait(60)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(half_blue.read_bytes())

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as place:
        thread = threading.Thread(target=place.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{place.server_port}/half.png", let
        let.set()
        place.shutdown()
        thread.join()


def test_a_heat_map_waits_for_its_picture(
    page: webdriver.Chrome, half_blue: Path, held: tuple[str, threading.Event]
) -> None:
    url, let = held
    page.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})  # the page shows its own pictures only
    try:
        page.refresh()
        wait(page, lambda: text(page, "state-text") == "Ready")
        page.execute_script(f"URL.createObjectURL = () => {json.dumps(url)}")
        give(page, half_blue)
        answered = "return performance.getEntriesByType('resource').some((one) => one.name.includes('v1/explain'))"
        wait(page, lambda: page.execute_script(answered))
        let.set()
        wait(page, lambda: page.find_element(By.ID, "heat").is_displayed())
        assert_painted_on_the_right(page)
    finally:
        page.execute_cdp_cmd("Page.setBypassCSP", {"enabled": False})


def test_another_label_is_explained_when_its_bar_is_pressed(page: webdriver.Chrome, half_blue: Path) -> None:
    give(page, half_blue)
    wait(page, lambda: "blue" in text(page, "heat-text"))
    red = page.find_element(By.CSS_SELECTOR, "#bars button[data-label=red]")
    red.send_keys(Keys.ENTER)
    wait(page, lambda: "red" in text(page, "heat-text"))
    assert red.get_attribute("aria-pressed") == "true"


# Heat maps are held back by the page's own way to the server until `letHeat` is called with their number; its promise
# is kept when the page has read the answer and done what it does with it.
HOLD_HEAT = """
const fetched = window.fetch, held = [];
window.heldHeat = () => held.length;
window.fetch = (path, options) => {
  if (!String(path).includes("v1/explain")) return fetched(path, options);
  return new Promise((answer) => held.push(async () => {
    const response = await fetched(path, options);
    const given = new Response(await response.text(), response), json = given.json.bind(given);
    await new Promise((read) => {
      given.json = () => {
        const found = json(), picture = document.getElementById("picture");
        found.then(() => picture.decode()).then(() => setTimeout(read));
        return found;
      };
      answer(given);
    });
  }));
};
window.letHeat = (number) => held[number]();
"""
LET_HEAT = "letHeat(arguments[0]).then(arguments[1])"


def test_a_heat_map_that_is_no_longer_wanted_is_not_shown(page: webdriver.Chrome, half_blue: Path) -> None:
    page.execute_script(HOLD_HEAT)
    give(page, half_blue)
    wait(page, lambda: page.execute_script("return heldHeat()") == 1)
    page.find_element(By.ID, "heat-switch").send_keys(Keys.SPACE)
    page.execute_async_script(LET_HEAT, 0)
    assert "with-heat" not in page.find_element(By.ID, "frame").get_attribute("class")
    assert not page.find_element(By.ID, "heat-busy").is_displayed()
    page.find_element(By.ID, "heat-switch").send_keys(Keys.SPACE)
    page.find_element(By.CSS_SELECTOR, "#bars button[data-label=red]").send_keys(Keys.ENTER)
    wait(page, lambda: page.execute_script("return heldHeat()") == 3)
    page.execute_async_script(LET_HEAT, 2)
    assert "red" in text(page, "heat-text")
    page.execute_async_script(LET_HEAT, 1)
    assert "red" in text(page, "heat-text")


def test_the_keyboard_alone_is_enough(page: webdriver.Chrome, half_blue: Path) -> None:
    order = []
    for _ in range(3):
        ActionChains(page).send_keys(Keys.TAB).perform()
        focused = page.switch_to.active_element
        order.append(focused.get_attribute("id") or focused.text)
    assert order == ["Skip to the answer", "API", "file"]
    give(page, half_blue)
    wait(page, lambda: text(page, "verdict") != "")
    page.find_element(By.ID, "heat-switch").send_keys(Keys.SPACE)
    assert not page.find_element(By.ID, "heat-switch").is_selected()
    assert "with-heat" not in page.find_element(By.ID, "frame").get_attribute("class")
    page.find_element(By.ID, "another").send_keys(Keys.ENTER)
    assert page.switch_to.active_element.get_attribute("id") == "file"


def test_every_control_has_a_name(page: webdriver.Chrome, half_blue: Path) -> None:
    assert "Choose a picture" in page.find_element(By.ID, "file").accessible_name
    give(page, half_blue)
    wait(page, lambda: page.find_element(By.ID, "heat").is_displayed())
    shown = [
        control
        for control in page.find_elements(By.CSS_SELECTOR, "a, button, input, select, canvas, #picture")
        if control.is_displayed()
    ]
    assert len(shown) >= 8
    for control in shown:
        assert control.accessible_name, control.get_attribute("outerHTML")
    assert page.find_element(By.ID, "live").get_attribute("aria-live") == "polite"


def test_a_picture_can_be_dropped_and_pasted(page: webdriver.Chrome) -> None:
    make = (
        "const canvas = new OffscreenCanvas(20, 20), context = canvas.getContext('2d');"
        "context.fillStyle = arguments[0]; context.fillRect(0, 0, 20, 20);"
        "const done = arguments[1];"
        "canvas.convertToBlob().then((blob) => { const data = new DataTransfer();"
        "data.items.add(new File([blob], 'made.png', {type: 'image/png'}));"
    )
    page.execute_async_script(
        make + "document.dispatchEvent(new DragEvent('drop', {dataTransfer: data})); done(); });", "#00f"
    )
    wait(page, lambda: text(page, "verdict").startswith("blue"))
    page.execute_async_script(
        make + "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data})); done(); });",
        "#f00",
    )
    wait(page, lambda: text(page, "verdict").startswith("red"))


def test_what_is_no_picture_is_said_in_words(page: webdriver.Chrome, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no picture")
    give(page, path)
    wait(page, lambda: text(page, "problem") != "")
    assert text(page, "problem").startswith("notes.txt: not a picture")


def test_it_fits_a_phone(page: webdriver.Chrome, half_blue: Path) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        give(page, half_blue)
        wait(page, lambda: "with-heat" in page.find_element(By.ID, "frame").get_attribute("class"))
        assert page.execute_script("return document.documentElement.scrollWidth") <= 360
        small = [
            bar.size["height"] for bar in page.find_elements(By.CSS_SELECTOR, "#bars button") if bar.size["height"] < 44
        ]
        assert not small
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_model_is_described(page: webdriver.Chrome) -> None:
    facts = text(page, "facts")
    for words in (
        "colours",
        "CPU",
        "98.7 % on validation images",
        "32 × 32 pixels",
        "red, green, blue",
        "commit 0123456789ab of March 5, 2026",
    ):
        assert words in facts


def test_nothing_comes_from_elsewhere_and_nothing_complains(
    page: webdriver.Chrome, server: Server, half_blue: Path
) -> None:
    give(page, half_blue)
    wait(page, lambda: "with-heat" in page.find_element(By.ID, "frame").get_attribute("class"))
    page.get(f"{server.url}/docs")
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, ".docs details"))
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked
    assert [url for url in asked if not url.startswith((server.url, "blob:", "data:"))] == []
    assert [entry for entry in page.get_log("browser") if "400" not in entry["message"]] == []


def test_a_key_is_asked_for_where_one_is_wanted(browser: webdriver.Chrome, model_file: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("open-sesame\n")
    with serving("--model", model_file, "--api-keys", keys, "--drain", "0") as guarded:
        browser.get(guarded.url)
        wait(browser, lambda: browser.find_element(By.ID, "key-form").is_displayed())
        browser.find_element(By.ID, "key").send_keys("open-sesame", Keys.ENTER)
        wait(browser, lambda: text(browser, "state-text") == "Ready")
        path = tmp_path / "blue.png"
        path.write_bytes(picture(BLUE))
        give(browser, path)
        wait(browser, lambda: text(browser, "verdict").startswith("blue"))
