"use strict";
(() => {
  const data = JSON.parse(document.getElementById("findings").textContent);
  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const percent = (value) => `${(100 * value).toFixed(1)}\u00a0%`;
  const short = (file) => file.split("/").slice(-2).join("/");

  const picture = (number) => {
    const item = data.items[number];
    const made = element("span", { className: "pic", role: "img" });
    made.setAttribute("aria-label", `${item.file}, labelled ${data.classes[item.label]}`);
    made.style.setProperty("--x", number % data.columns);
    made.style.setProperty("--y", Math.floor(number / data.columns));
    return made;
  };

  // Light and dark: the system's choice until a person makes one.
  const theme = document.getElementById("theme");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (systemDark.matches ? "dark" : "light")) === "dark";
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
    drawMap();
  });
  systemDark.addEventListener("change", () => { nameTheme(); drawMap(); });
  nameTheme();

  // On paper: light, and everything unfolded.
  let before = null;
  addEventListener("beforeprint", () => {
    before = { theme: document.documentElement.dataset.theme, folded: [...document.querySelectorAll("details:not([open])")] };
    document.documentElement.dataset.theme = "light";
    before.folded.forEach((part) => { part.open = true; });
    drawMap();
  });
  addEventListener("afterprint", () => {
    if (before.theme) document.documentElement.dataset.theme = before.theme;
    else delete document.documentElement.dataset.theme;
    before.folded.forEach((part) => { part.open = false; });
    drawMap();
  });

  // What does not fit scrolls, by keyboard too; what fits is no stop on the way.
  const regions = new ResizeObserver((entries) => entries.forEach(({ target }) => {
    const hides = target.scrollWidth > target.clientWidth + 1 || target.scrollHeight > target.clientHeight + 1;
    if (hides && target.role) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }));
  document.querySelectorAll(".scroll").forEach((region) => regions.observe(region));

  // Confusion matrix: one tab stop, arrows move, Enter or a click shows the pictures.
  const cells = [...document.querySelectorAll(".matrix button")];
  const panel = document.getElementById("cell");
  const showCell = (button) => {
    cells.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    const [truth, said] = button.dataset.cell.split(",").map(Number);
    const numbers = data.cells[button.dataset.cell] || [];
    const count = data.counts[truth][said];
    const title = truth === said
      ? `${count} × ${data.classes[truth]}, found`
      : `${count} × ${data.classes[truth]} taken for ${data.classes[said]}`;
    const thumbs = numbers.map((number) => element("figure", {}, picture(number),
      element("figcaption", {}, percent(data.items[number].confidence), element("br"), short(data.items[number].file))));
    const rest = count > numbers.length ? `The ${numbers.length} surest of ${count}.` : "";
    panel.replaceChildren(element("h3", { textContent: title }),
      element("div", { className: "thumbs" }, ...thumbs), element("p", { className: "quiet", textContent: rest }));
  };
  const at = (row, column) => row?.children[column]?.querySelector("button");
  const neighbour = (button, down, right) => {
    let row = button.closest("tr");
    let column = button.closest("td").cellIndex;
    for (;;) {
      row = down > 0 ? row.nextElementSibling : down < 0 ? row.previousElementSibling : row;
      column += right;
      if (!row || column < 1 || column >= row.children.length) return null;
      if (at(row, column)) return at(row, column);
    }
  };
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  cells.forEach((button) => {
    button.addEventListener("click", () => showCell(button));
    button.addEventListener("keydown", (event) => {
      const next = steps[event.key] && neighbour(button, ...steps[event.key]);
      if (!next) return;
      event.preventDefault();
      button.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });
  const misses = cells.filter((button) => button.classList.contains("miss"));
  const worst = (misses.length ? misses : cells).reduce((a, b) => (Number(b.textContent) > Number(a.textContent) ? b : a));
  worst.tabIndex = 0;
  showCell(worst);

  // Tables that sort: numbers downwards first, names upwards.
  const key = (row, column) => {
    const cell = row.children[column];
    const value = Number(cell.dataset.value ?? cell.textContent);
    return Number.isNaN(value) ? cell.textContent : value;
  };
  document.querySelectorAll(".sortable thead th").forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const first = head.classList.contains("n") ? "descending" : "ascending";
    const order = head.ariaSort === first ? (first === "ascending" ? "descending" : "ascending") : first;
    head.parentElement.querySelectorAll("th").forEach((other) => { other.ariaSort = "none"; });
    head.ariaSort = order;
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
    body.append(...[...body.rows].sort((a, b) => sign * compare(key(a, column), key(b, column))));
  }));

  // Heat maps: the confidence that covering a patch costs, smoothed over the picture.
  document.querySelectorAll("canvas[data-heat]").forEach((canvas) => {
    // Patch centres run from one to seven eighths of a side: repeated at the edges, the grid covers the picture.
    const edged = (list) => [list[0], ...list, list[list.length - 1]];
    const heat = edged(JSON.parse(canvas.dataset.heat).map(edged));
    const most = Math.max(0.05, ...heat.flat());
    const small = element("canvas", { width: heat[0].length, height: heat.length });
    const pixels = small.getContext("2d").createImageData(small.width, small.height);
    heat.flat().forEach((value, index) => {
      const share = (Math.max(0, value) / most) ** 1.5;
      pixels.data.set([255, 70 + 150 * share, 30, 190 * share], 4 * index);
    });
    small.getContext("2d").putImageData(pixels, 0, 0);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    const cell = canvas.width / (small.width - 1);
    context.drawImage(small, -cell / 2, -cell / 2, canvas.width + cell, canvas.height + cell);
  });

  // The map of the features.
  const plane = document.getElementById("plane");
  const hue = (index) => `oklch(${isDark() ? 0.76 : 0.58} 0.16 ${(25 + index * 360 / Math.min(10, data.classes.length) + Math.floor(index / 10) * 17) % 360})`;
  let chosen = -1;
  let only = -1;
  const place = ([x, y]) => [plane.width * (0.5 + 0.47 * x), plane.height * (0.5 - 0.47 * y)];
  function drawMap() {
    if (!plane) return;
    const context = plane.getContext("2d");
    const ink = getComputedStyle(document.body).color;
    context.clearRect(0, 0, plane.width, plane.height);
    data.points.forEach((point, index) => {
      const item = data.items[point[2]];
      const [x, y] = place(point);
      context.globalAlpha = only < 0 || item.label === only ? 0.9 : 0.12;
      context.fillStyle = hue(item.label);
      context.beginPath();
      context.arc(x, y, index === chosen ? 14 : 7, 0, 7);
      context.fill();
      if (item.label !== item.predicted || index === chosen) {
        context.strokeStyle = ink;
        context.lineWidth = 3;
        context.beginPath();
        context.arc(x, y, index === chosen ? 17 : 11, 0, 7);
        context.stroke();
      }
    });
    document.querySelectorAll("#legend i").forEach((dot, index) => { dot.style.background = hue(index); });
  }
  function choose(index) {
    if (index === chosen) return;
    chosen = index;
    const number = data.points[index][2];
    const item = data.items[number];
    const verdict = item.label === item.predicted ? "found" : `taken for ${data.classes[item.predicted]}`;
    document.getElementById("point").replaceChildren(picture(number),
      element("h3", { textContent: data.classes[item.label] }),
      element("p", { textContent: `${verdict}, ${percent(item.confidence)}` }),
      element("p", { className: "file", textContent: short(item.file), title: item.file }));
    drawMap();
  }
  if (plane) {
    data.classes.forEach((name, index) => {
      const button = element("button", { type: "button", ariaPressed: "false" }, element("i"), name);
      button.addEventListener("click", () => {
        only = only === index ? -1 : index;
        [...button.parentElement.children].forEach((other, number) => { other.ariaPressed = String(number === only); });
        drawMap();
      });
      document.getElementById("legend").append(button);
    });
    // The nearest point that lies more in this direction than beside it.
    const beyond = (down, right) => {
      const [x, y] = place(data.points[chosen]);
      let best = -1;
      let least = Infinity;
      data.points.forEach((point, index) => {
        const [dx, dy] = [place(point)[0] - x, place(point)[1] - y];
        const ahead = right ? right * dx : down * dy;
        const aside = Math.abs(right ? dy : dx);
        if (ahead > 0 && aside <= ahead && ahead + aside < least) [best, least] = [index, ahead + aside];
      });
      return best;
    };
    const nearest = (event) => {
      const box = plane.getBoundingClientRect();
      const x = (event.clientX - box.left) * plane.width / box.width;
      const y = (event.clientY - box.top) * plane.height / box.height;
      const distances = data.points.map((point) => Math.hypot(place(point)[0] - x, place(point)[1] - y));
      choose(distances.indexOf(Math.min(...distances)));
    };
    plane.addEventListener("pointermove", nearest);
    plane.addEventListener("pointerdown", nearest);
    plane.addEventListener("keydown", (event) => {
      if (!steps[event.key]) return;
      event.preventDefault();
      const next = chosen < 0 ? 0 : beyond(...steps[event.key]);
      if (next >= 0) choose(next);
    });
    drawMap();
  }
})();
