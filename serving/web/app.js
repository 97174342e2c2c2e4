// The page: a picture in, bars and a heat map out. Speaks only to the server it came from.
"use strict";

const at = (id) => document.getElementById(id);
// Two digits where one would round to all or nothing.
const percent = (share) => `${(share * 100).toFixed(share > 0.999 || share < 0.001 ? 2 : 1)} %`;
const TOP = 5;
const TINY = 128; // pixels below which smoothing would only blur the picture

let models = [];
let picture = null; // what is shown now
let asked = 0; // answers to earlier pictures are dropped
let explained = 0; // and so are heat maps of what is no longer asked
let key = "";

async function ask(path, options = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const response = await fetch(path, { ...options, headers });
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) at("key-form").hidden = false;
  if (!response.ok) throw new Error(body.error || `The server answered ${response.status}.`);
  return body;
}

function chosen() {
  return models[at("model").selectedIndex] || models[0];
}

function form(fields = {}) {
  const data = new FormData();
  const model = chosen();
  const all = { ...(model ? { model: model.name, version: model.version } : {}), ...fields };
  for (const [name, value] of Object.entries(all)) data.append(name, value);
  data.append("image", picture, picture.name || "pasted picture");
  return { method: "POST", body: data };
}

async function connect() {
  try {
    models = (await ask("v1/models")).models;
    at("key-form").hidden = true;
    at("model").replaceChildren(...models.map((model) => new Option(`${model.name}, version ${model.version}`)));
    at("model-choice").hidden = models.length < 2;
    say(models.length ? "ready" : "away", models.length ? "Ready" : "No model is loaded");
    describe();
  } catch (error) {
    say("away", error instanceof TypeError ? "The server does not answer" : error.message);
  }
}

function say(state, text) {
  at("state").className = `state ${state}`;
  at("state-text").textContent = text;
}

function describe() {
  const model = chosen();
  if (!model) return;
  document.title = `Graft: ${model.name}`;
  const accuracy = ["test_accuracy", "accuracy", "validation_accuracy"].find((name) => name in model.metrics);
  const facts = [
    ["Model", `${model.name}, version ${model.version}`],
    ["Runs on", `${{ cpu: "CPU", cuda: "GPU (CUDA)", tensorrt: "GPU (TensorRT)" }[model.provider]}, ${model.precision}`],
    ["Accuracy", accuracy ? `${percent(model.metrics[accuracy])} on ${accuracy === "validation_accuracy" ? "validation" : "test"} images` : "not stated in the file"],
    ["Trained with", trainedWith(model.provenance)],
    ["File written", day(model.written)],
    ["Sees", `${model.image_size[1]} × ${model.image_size[0]} pixels`],
    ["Classes", model.classes.length > 12 ? `${model.classes.length}` : model.classes.join(", ")],
  ];
  at("facts").replaceChildren(...facts.map(([name, value]) => {
    const fact = document.createElement("div");
    fact.append(element("dt", name), element("dd", value));
    return fact;
  }));
}

function day(date) {
  return new Date(date).toLocaleDateString(undefined, { dateStyle: "long" });
}

// The file holds no clock's time, for equal inputs give equal files: its date is that of the code that trained it.
function trainedWith({ git = "none", date = "none" }) {
  if (git === "none") return "no commit";
  const [commit, changes] = git.split("+");
  return `commit ${commit.slice(0, 12)}${date === "none" ? "" : ` of ${day(date)}`}${changes ? ", with changes" : ""}`;
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function show(file) {
  if (!file) return;
  picture = file;
  const turn = ++asked;
  reset();
  const url = URL.createObjectURL(file);
  const image = at("picture");
  image.onload = () => {
    image.classList.toggle("tiny", Math.max(image.naturalWidth, image.naturalHeight) <= TINY);
    image.alt = `The picture you gave, ${image.naturalWidth} by ${image.naturalHeight} pixels`;
    URL.revokeObjectURL(url);
  };
  image.onerror = () => { image.alt = "This browser cannot show the picture"; URL.revokeObjectURL(url); };
  image.src = url;
  at("drop").hidden = true;
  at("shown").hidden = false;
  try {
    const { results } = await ask("v1/classify", form({ top_k: TOP }));
    if (turn !== asked) return;
    draw(results[0].predictions);
    await explain(results[0].predictions[0].label);
  } catch (error) {
    if (turn === asked) complain(error);
  }
}

function reset() {
  dropHeat();
  at("bars").replaceChildren();
  at("heat-text").textContent = "";
  for (const id of ["problem", "verdict", "bars-hint"]) at(id).hidden = true;
  at("empty").hidden = false;
  at("empty").textContent = "Asking…";
}

function dropHeat() {
  explained++;
  at("heat-busy").hidden = true;
  at("frame").classList.remove("with-heat");
}

function complain(error) {
  at("empty").hidden = true;
  at("heat-busy").hidden = true;
  at("problem").hidden = false;
  at("problem").textContent = error instanceof TypeError ? "The server does not answer; is it still running?" : error.message;
}

function draw(predictions) {
  const best = predictions[0];
  at("empty").hidden = true;
  at("verdict").hidden = false;
  at("verdict").textContent = `${best.label}, ${percent(best.probability)}`;
  at("bars-hint").hidden = predictions.length < 2;
  at("bars").replaceChildren(...predictions.map((prediction) => {
    const button = element("button");
    const track = element("span", undefined, "track");
    const fill = element("span");
    track.setAttribute("aria-hidden", "true");
    track.append(fill);
    button.type = "button";
    button.dataset.label = prediction.label;
    button.append(element("span", prediction.label, "name"), element("span", percent(prediction.probability), "share"), track);
    button.addEventListener("click", () => explain(prediction.label));
    requestAnimationFrame(() => { fill.style.width = `${prediction.probability * 100}%`; });
    const item = element("li");
    item.append(button);
    return item;
  }));
}

async function explain(label) {
  const turn = ++explained;
  for (const button of at("bars").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.label === label));
  }
  if (!at("heat-switch").checked) return;
  at("heat-busy").hidden = false;
  try {
    const answer = await ask("v1/explain", form({ label }));
    await at("picture").decode().catch(() => {}); // it is painted over the picture, at its size
    if (turn !== explained) return;
    paint(answer.heat);
    at("heat-text").textContent = words(answer);
    at("heat").setAttribute("aria-label", words(answer));
  } catch (error) {
    if (turn === explained) at("heat-text").textContent = `No heat map: ${error.message}`;
  } finally {
    if (turn === explained) at("heat-busy").hidden = true;
  }
}

// The map in words, for those who do not see it.
function words({ heat, label }) {
  let sum = 0, x = 0, y = 0;
  heat.forEach((row, i) => row.forEach((value, j) => {
    const weight = value ** 8; // the hottest place, not the middle between it and lukewarm ones
    sum += weight;
    x += weight * (j + 0.5) / row.length;
    y += weight * (i + 0.5) / heat.length;
  }));
  if (!sum) return `Hiding any single part changes nothing for “${label}”.`;
  const place = (share, names) => names[share < 0.4 ? 0 : share > 0.6 ? 2 : 1];
  const vertical = place(y / sum, ["top", "", "bottom"]), horizontal = place(x / sum, ["left", "", "right"]);
  const where = vertical ? `at the ${[vertical, horizontal].filter(Boolean).join(" ")}` : horizontal ? `on the ${horizontal}` : "in the middle";
  return `What speaks most for “${label}” is ${where} of the picture.`;
}

function paint(heat) {
  const canvas = at("heat"), image = at("picture");
  const rows = heat.length, columns = heat[0].length;
  const small = new OffscreenCanvas(columns, rows);
  const pixels = new ImageData(columns, rows);
  heat.flat().forEach((value, index) => {
    // Nothing is clear, a little violet, most yellow: told apart by lightness too.
    const [red, green, blue] = [[70, 20, 120], [200, 50, 90], [255, 220, 60]].reduce((mix, colour, stop, stops) => {
      const weight = Math.max(0, 1 - Math.abs(value * (stops.length - 1) - stop));
      return mix.map((part, channel) => part + colour[channel] * weight);
    }, [0, 0, 0]);
    pixels.data.set([red, green, blue, 30 + 195 * value], index * 4);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  place(canvas, image);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  at("frame").classList.add("with-heat");
}

// Over the picture itself, not over the bands beside it.
function place(canvas, image) {
  const scale = Math.min(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight) || 1;
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
}

function again() {
  asked++;
  picture = null;
  at("file").value = "";
  at("shown").hidden = true;
  at("drop").hidden = false;
  reset();
  at("empty").textContent = "The probabilities will stand here.";
  at("file").focus();
}

at("file").addEventListener("change", (event) => show(event.target.files[0]));
at("another").addEventListener("click", again);
at("model").addEventListener("change", () => { describe(); show(picture); });
at("heat-switch").addEventListener("change", (event) => {
  at("heat-text").hidden = !event.target.checked;
  const pressed = at("bars").querySelector("[aria-pressed=true]");
  if (!event.target.checked) dropHeat();
  else if (pressed) explain(pressed.dataset.label);
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value;
  connect();
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((item) => item.type.startsWith("image/"));
  if (file) show(file);
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); at("drop").classList.add("over"); });
}
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  show(event.dataTransfer.files[0]);
});
new ResizeObserver(() => {
  if (at("frame").classList.contains("with-heat")) {
    const drawn = at("heat"), copy = new OffscreenCanvas(drawn.width, drawn.height);
    copy.getContext("2d").drawImage(drawn, 0, 0);
    place(drawn, at("picture"));
    drawn.getContext("2d").drawImage(copy, 0, 0, drawn.width, drawn.height);
  }
}).observe(at("frame"));

connect();
