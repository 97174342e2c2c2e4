"""The running server: what it answers, how it swaps, drains, counts, remembers and guards."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_models import colour_model
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from samples import BLUE, GREEN, PIXELS, RED, form, infer_body, picture
from servers import ROOT, Server, load, serving

from graft.traffic import Traffic
from serving.server import refuse_handshakes

JSON = {"content-type": "application/json"}
# Where a batch takes long enough for a test to see others wait, whatever the machine has.
ONE_BY_ONE = ("--drain", "0", "--provider", "cpu", "--threads", "1")


def labels(document: dict[str, Any]) -> list[str]:
    return [result["predictions"][0]["label"] for result in document["results"]]


# What it answers


def test_pictures_come_as_form_json_or_bytes(server: Server) -> None:
    body, headers = form(("a.png", picture(RED)), ("b.jpg", picture(BLUE, kind="JPEG")), top_k="2")
    status, document, _ = server.ask("POST", "/v1/classify", body, headers)
    assert status == 200, document
    assert labels(document) == ["red", "blue"]
    assert [result["name"] for result in document["results"]] == ["a.png", "b.jpg"]
    assert [len(result["predictions"]) for result in document["results"]] == [2, 2]
    encoded = base64.b64encode(picture(GREEN, kind="WEBP")).decode()
    for image in (encoded, f"data:image/webp;base64,{encoded}"):
        body = json.dumps({"images": [image], "top_k": 1})
        status, document, _ = server.ask("POST", "/v1/classify", body, JSON)
        assert (status, labels(document)) == (200, ["green"])
    status, document, _ = server.ask(
        "POST", "/v1/classify?top_k=3", picture(RED, kind="GIF"), {"content-type": "image/gif"}
    )
    assert (status, labels(document)) == (200, ["red"])
    probabilities = [row["probability"] for row in document["results"][0]["predictions"]]
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert probabilities == sorted(probabilities, reverse=True)


def test_what_is_served_is_what_the_file_says(server: Server, model_file: Path, tmp_path: Path) -> None:
    """The server and the command line, which opens the file itself, see the same pixels."""
    rng = np.random.default_rng(7)
    path = tmp_path / "noise.png"
    Image.fromarray(rng.integers(0, 256, (77, 51, 3), np.uint8)).save(path)
    outputs = [
        run_graft("predict", path, "--json", *source)
        for source in (("--model", model_file, "--provider", "cpu"), ("--url", server.url))
    ]
    here, there = [json.loads(output)["predictions"] for output in outputs]
    assert [row["label"] for row in here] == [row["label"] for row in there]
    assert [row["probability"] for row in here] == pytest.approx([row["probability"] for row in there], abs=1e-6)


def run_graft(*arguments: str | Path, code: int = 0) -> str:
    command = [sys.executable, "-m", "graft.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_mistakes_on_the_command_line_are_one_sentence(server: Server, model_file: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    mistakes: list[tuple[tuple[str | Path, ...], int, str]] = [
        (("predict", text, "--model", model_file), 2, "not a picture"),
        (("predict", text, "--url", server.url), 2, "not a picture"),
        (("predict", text, "--url", "http://127.0.0.1:9"), 1, "is `graft serve` running?"),
        (("predict", tmp_path / "none.png", "--model", model_file), 2, "cannot be read"),
        (("serve", "--model", tmp_path / "none.onnx"), 2, "there is no model"),
        (("serve", "--model", model_file, "--port", str(server.address[1])), 2, "cannot be served"),
        (("serve", "--model", model_file, "--provider", "gpu"), 2, "Received: gpu"),
        (("serve", "--model", model_file, "--tls-key", text), 2, "both --tls-certificate and --tls-key"),
        (("serve", "--model", model_file, "--tls-key", text, "--tls-certificate", text), 2, "no PEM certificate"),
        (("serve", "--model", model_file, "--port", "0", "--grpc-port", server.grpc.split(":")[1]), 2, "--grpc-port"),
    ]
    # Each waits for Python to start: side by side they take half the time.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        answers = pool.map(lambda mistake: run_graft(*mistake[0], code=mistake[1]), mistakes)
        for (_, _, words), said in zip(mistakes, answers, strict=True):
            assert words in said
            assert "Traceback" not in said


def test_a_heat_map_shows_where_the_colour_is(server: Server) -> None:
    image = Image.new("RGB", (64, 64), (60, 60, 60))
    image.paste(RED, (0, 0, 32, 32))
    out = io.BytesIO()
    image.save(out, "PNG")
    status, document, _ = server.ask("POST", "/v1/explain", out.getvalue(), {"content-type": "image/png"})
    assert status == 200, document
    heat = np.array(document["heat"])
    half = len(heat) // 2
    assert document["label"] == "red"
    assert heat.max() == 1
    assert heat[:half, :half].mean() > 10 * heat[half:, half:].mean()
    status, document, _ = server.ask("POST", "/v1/explain?label=blue", out.getvalue(), {"content-type": "image/png"})
    assert (status, document["label"]) == (200, "blue")


def test_the_model_is_described_with_its_provider(server: Server) -> None:
    (model,) = server.get("/v1/models")["models"]
    assert model["metrics"] == {"validation_accuracy": 0.987}
    assert model["provider"] in ("cpu", "cuda")
    assert server.get("/v2/models/colours")["parameters"]["provider"] == model["provider"]
    assert server.get("/v2/models/colours/config")["parameters"]["provider"]["string_value"] == model["provider"]
    assert server.get("/openapi.json")["openapi"].startswith("3.1")


def test_every_answer_has_an_id_and_every_request_a_log_line(server: Server) -> None:
    _, _, headers = server.ask("GET", "/v2", headers={"x-request-id": "mine-1"})
    assert headers["x-request-id"] == "mine-1"
    _, _, headers = server.ask("GET", "/v2", headers={"x-request-id": "no\tid " * 40})
    assert len(headers["x-request-id"]) == 16
    while not any('"mine-1"' in line for line in server.access):
        server.get("/v2/health/live")
    (line,) = [json.loads(line) for line in server.access if '"mine-1"' in line]
    assert (line["method"], line["path"], line["status"]) == ("GET", "/v2", 200)


def test_metrics_have_the_names_that_dashboards_read(model_file: Path) -> None:
    with serving("--model", model_file, "--drain", "0") as server:
        body, headers = infer_body()
        assert server.ask("POST", "/v2/models/colours/infer", body, headers)[0] == 200
        assert server.ask("POST", "/v2/models/colours/infer", b"{}", JSON)[0] == 400
        assert server.ask("POST", "/v1/classify", *form(("a.png", picture(BLUE))))[0] == 200
        text = server.ask("GET", "/metrics")[1]
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    model = (("model", "colours"), ("version", "1"))
    assert samples["nv_inference_request_success", model] == 2
    assert samples["nv_inference_request_failure", (("model", "colours"), ("reason", "OTHER"), ("version", "1"))] == 1
    assert samples["nv_inference_count", model] == 4
    assert samples["nv_inference_exec_count", model] == 2
    assert samples["nv_inference_pending_request_count", model] == 0
    for part in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        assert samples[f"nv_inference_{part}_duration_us", model] >= 0
    assert samples["nv_inference_request_duration_us", model] > samples["nv_inference_compute_infer_duration_us", model]
    by_class = {
        dict(labels_)["class"]: value for (name, labels_), value in samples.items() if name == "graft_predictions_total"
    }
    assert by_class == {"red": 1, "green": 1, "blue": 2}
    assert samples["graft_confidence_count", model] == 4
    assert any(name == "graft_model_info" and ("provider", "cpu") in key for name, key in samples) or any(
        ("provider", "cuda") in key for name, key in samples
    )


# Several models and versions, swapping and stopping


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository in Triton's layout: `colours` with versions 1 and 2, `two` with one."""
    colour_model(tmp_path / "repository/colours/1/model.onnx")
    colour_model(tmp_path / "repository/colours/2/model.onnx", sharpness=-8)
    colour_model(tmp_path / "repository/two/1/model.onnx", name="two", size=16)
    return tmp_path / "repository"


def best(server: Server, path: str) -> int:
    body, headers = infer_body(PIXELS[:1])
    status, document, _ = server.ask("POST", path, body, headers)
    assert status == 200, document
    return int(np.argmax(document["outputs"][0]["data"]))


def test_several_models_and_versions_at_once(folder: Path) -> None:
    with serving("--model", folder, "--versions", "0", "--drain", "0") as server:
        assert server.get("/v2/models/colours")["versions"] == ["1", "2"]
        assert best(server, "/v2/models/colours/versions/1/infer") == 0
        assert best(server, "/v2/models/colours/versions/2/infer") != 0
        assert best(server, "/v2/models/colours/infer") != 0  # the newest answers for the name
        assert server.get("/v2/models/two")["inputs"][0]["shape"] == [-1, 16, 16, 3]
        status, document, _ = server.ask("POST", "/v1/classify", *form(("a.png", picture(RED))))
        assert (status, document) == (400, {"error": "name a model: colours, two"})
        body, headers = form(("a.png", picture(RED)), model="colours", version="1")
        assert labels(server.ask("POST", "/v1/classify", body, headers)[1]) == ["red"]


def test_a_version_is_swapped_under_load_and_no_request_fails(folder: Path) -> None:
    colours = folder / "colours"
    shutil.move(colours / "2", folder / "kept")
    with serving("--model", colours, "--follow", "0.05", "--drain", "0") as server, load(server) as running:
        running.wait_for(20)
        for number in range(2, 6):
            # A version appears whole, as a registry or `mv` on one disk makes it appear.
            source = folder / "kept" if number % 2 == 0 else colours / "1"
            shutil.copytree(source, folder / "new")
            (folder / "new").rename(colours / str(number))
            while server.get("/v2/models/colours")["versions"] != [str(number)]:
                running.wait_for(1)
            running.wait_for(20)
    assert running.failures == []
    assert {status for status, _, _ in running.answers} == {200}
    versions = {json.loads(data)["model_version"] for _, data, _ in running.answers}
    assert versions == {"1", "2", "3", "4", "5"}


def test_a_broken_new_version_leaves_the_old_one_serving(folder: Path) -> None:
    with serving("--model", folder / "colours", "--drain", "0") as server:
        broken = folder / "colours/3/model.onnx"
        broken.parent.mkdir()
        broken.write_bytes((folder / "colours/1/model.onnx").read_bytes()[:300])
        status, document, _ = server.ask("POST", "/v2/repository/models/colours/load")
        assert status == 400
        assert "damaged" in document["error"]
        assert server.get("/v2/models/colours")["versions"] == ["2"]
        assert server.ask("GET", "/v2/health/ready")[0] == 200
        assert best(server, "/v2/models/colours/infer") != 0


def test_a_file_replaced_in_place_is_served_after_load(tmp_path: Path) -> None:
    path = colour_model(tmp_path / "model.onnx")
    with serving("--model", path, "--drain", "0") as server:
        assert best(server, "/v2/models/colours/infer") == 0
        assert server.ask("POST", "/v2/repository/models/colours/load")[1] == {"changed": False}
        colour_model(tmp_path / "other.onnx", sharpness=-8).replace(path)
        assert server.ask("POST", "/v2/repository/models/colours/load")[1] == {"changed": True}
        assert best(server, "/v2/models/colours/infer") != 0


def test_sigterm_drains_and_every_request_is_answered(tmp_path: Path) -> None:
    path = colour_model(tmp_path / "model.onnx", work=12)
    with serving("--model", path, "--drain", "3") as server, load(server) as running:
        running.wait_for(8)
        server.process.send_signal(signal.SIGTERM)
        while server.ask("GET", "/v2/health/ready")[0] != 503:
            pass
        assert server.process.wait(60) == 0
    assert running.failures == []
    assert {status for status, _, _ in running.answers} == {200}
    assert "close" in {connection for _, _, connection in running.answers}


def test_who_connected_before_the_end_is_answered_after_it(tmp_path: Path) -> None:
    path = colour_model(tmp_path / "model.onnx")
    with serving("--model", path, "--drain", "0.5") as server, ExitStack() as opened:
        early = opened.enter_context(socket.create_connection(server.address))
        late: list[socket.socket] = []
        server.process.send_signal(signal.SIGTERM)
        with suppress(TimeoutError, ConnectionRefusedError):
            while True:
                # Who comes too late hears nothing for a second, and the others are given half of one to ask.
                late.append(opened.enter_context(socket.create_connection(server.address, timeout=0.4)))
                late[-1].settimeout(60)
                if len(late) > 5:  # however many a machine makes in that time, the last ones are asked for
                    late.pop(0).close()
                server.ask("GET", "/v2/health/live", timeout=0.4)
        asking = (early, *late[:-1])
        for client in asking:
            client.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        for client in asking:
            answer = client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer.lower()
        # The last one never asks, and is not waited for.
        assert server.process.wait(60) == 0


def test_whose_handshake_comes_too_late_is_refused_and_nobody_is_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as early:
            refuse_handshakes(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.3)
            early.sendall(b"hello")
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(5) == b"hello"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_client_that_leaves_frees_its_place(tmp_path: Path) -> None:
    path = colour_model(tmp_path / "model.onnx", work=30, size=64)
    images = np.zeros((32, 64, 64, 3), np.uint8)
    body, headers = infer_body(images)
    with serving("--model", path, "--max-queue-size", "64", *ONE_BY_ONE) as server:
        leavers = [http.client.HTTPConnection(*server.address) for _ in range(4)]
        for leaver in leavers:
            leaver.request("POST", "/v2/models/colours/infer", body, headers)
        while server.pending() < 2:
            pass
        for leaver in leavers:
            leaver.close()
        while server.pending():
            pass
        text = server.ask("GET", "/metrics")[1]
        assert 'nv_inference_request_failure{model="colours",reason="CANCELED",version="1"} 0.0' not in text
        while '"status":499' not in "".join(server.access):
            server.get("/v2/health/live")


def test_a_full_queue_is_answered_503_with_retry_after(tmp_path: Path) -> None:
    path = colour_model(tmp_path / "model.onnx", work=30, size=64)
    body, headers = infer_body(np.zeros((16, 64, 64, 3), np.uint8))
    with serving("--model", path, "--max-queue-size", "16", *ONE_BY_ONE) as server:
        answers: list[tuple[int, Any, dict[str, str]]] = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(server.ask("POST", "/v2/models/colours/infer", body, headers))
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    refused = [answer for answer in answers if answer[0] == 503]
    assert {answer[0] for answer in answers} == {200, 503}
    for _, document, found in refused:
        assert "waiting" in document["error"]
        assert int(found["retry-after"]) >= 1


# Drift and samples


def test_the_traffic_is_summed_up_for_the_retraining_flow(model_file: Path, tmp_path: Path) -> None:
    traffic = tmp_path / "monitoring"
    body, headers = infer_body()
    for _ in range(2):  # a second server of the same day and port adds to the first one's sums
        with serving("--model", model_file, "--traffic", traffic, "--port", "0", "--drain", "0") as server:
            server.ask("POST", "/v2/models/colours/infer", body, headers)
            assert server.stop() == 0
    files = list(traffic.glob("colours/1/*.json"))
    total = Traffic(("red", "green", "blue"))
    for file in files:
        total.merge(Traffic.from_json(json.loads(file.read_text())))
    assert total.images == 6
    assert total.class_counts.tolist() == [2, 2, 2]
    assert total.confidence.sum() == 6
    assert total.feature_sums[0] / 6 == pytest.approx(np.mean([colour[0] for colour in (RED, GREEN, BLUE)]))


def test_samples_are_kept_only_when_asked_for_and_are_bounded(model_file: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    body, headers = infer_body()
    with serving("--model", model_file, "--sample", samples, "--sample-share", "1", "--drain", "0") as server:
        server.ask("POST", "/v2/models/colours/infer", body, headers)
        assert server.stop() == 0
    found = sorted(samples.glob("colours/*.png"))
    assert [Image.open(path).getpixel((0, 0)) for path in found] == [RED, GREEN, BLUE]
    assert json.loads(found[2].with_suffix(".json").read_text())["class"] == "blue"


# Guards


def test_keys_open_all_but_health_and_the_page(model_file: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# for tests\nfirst-key\nsecond-key\n")
    with serving("--model", model_file, "--api-keys", keys, "--drain", "0") as server:
        for path in ("/", "/docs", "/static/app.js", "/v2/health/live", "/v2/health/ready", "/openapi.json"):
            assert server.ask("GET", path)[0] == 200
        body, headers = infer_body()
        for path in ("/v2/models/colours/infer", "/v1/classify", "/v2/repository/models/colours/unload"):
            status, document, found = server.ask("POST", path, body, headers)
            assert (status, found["www-authenticate"]) == (401, "Bearer")
            assert "key" in document["error"]
        assert server.ask("GET", "/metrics")[0] == 401
        assert server.ask("GET", "/v2", headers={"authorization": "Bearer wrong"})[0] == 401
        assert server.ask("GET", "/v2", headers={"authorization": "Bearer second-key"})[0] == 200
        assert server.ask("GET", "/metrics", headers={"x-api-key": "first-key"})[0] == 200


def test_pages_of_other_sites_cannot_reach_a_server_on_loopback(server: Server) -> None:
    for headers in (
        {"origin": "https://elsewhere.example"},
        {"host": "elsewhere.example"},
        {"origin": "null"},
    ):
        status, document, _ = server.ask("POST", "/v2/repository/models/colours/unload", "", headers)
        assert status == 403, headers
        assert "error" in document
    assert server.ask("GET", "/v2", headers={"origin": server.url})[0] == 200


def test_named_origins_may_ask_and_control_by_request_can_be_off(model_file: Path) -> None:
    site = "https://app.example"
    with serving("--model", model_file, "--cors-origin", site, "--no-control", "--drain", "0") as server:
        status, _, headers = server.ask("GET", "/v2", headers={"origin": site})
        assert (status, headers["access-control-allow-origin"]) == (200, site)
        assert server.ask("GET", "/v2", headers={"origin": "https://other.example"})[0] == 403
        for verb in ("load", "unload"):
            assert server.ask("POST", f"/v2/repository/models/colours/{verb}")[0] == 403


def test_it_binds_to_loopback_unless_told_otherwise(server: Server) -> None:
    assert server.address[0] == "127.0.0.1"


def test_nothing_of_the_pipeline_is_imported(model_file: Path, tmp_path: Path) -> None:
    """The server runs where TensorFlow, Keras, Prefect, DVC and onnx cannot be imported."""
    refused = {
        "tensorflow",
        "keras",
        "tf2onnx",
        "prefect",
        "dvc",
        "onnx",
        "sklearn",
        "flows",
        "tasks",
        "fastapi",
        "grpc",
    }
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {refused}:\n"
        "            raise ImportError(name + ' is not for the server')\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    with serving("--model", model_file, "--drain", "0", environment={"PYTHONPATH": str(tmp_path)}) as server:
        assert server.ask("POST", "/v1/classify", *form(("a.png", picture(RED))))[0] == 200
        assert server.ask("GET", "/metrics")[0] == 200


def test_the_dashboard_asks_only_for_metrics_that_exist(server: Server) -> None:
    dashboard = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text(encoding="utf-8"))
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    server.get("/v2")  # a status is counted from its first answer on
    wanted = set(re.findall(r"\b(?:nv_inference|graft|process)_\w+", asked))
    text = server.ask("GET", "/metrics")[1]
    offered = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    assert len(wanted) > 10
    assert wanted <= offered
