// The OpenAPI document as a page: endpoints by tag, each with its parameters, bodies and answers.
"use strict";

function element(tag, content = [], className = "") {
  const made = document.createElement(tag);
  made.append(...[content].flat());
  if (className) made.className = className;
  return made;
}

function example(method, path, operation) {
  const url = location.origin + path.replaceAll(/\{(\w+)\}/g, (_, name) => {
    const parameter = (operation.parameters || []).find((given) => given.name === name);
    return parameter?.schema.enum?.[0] ?? "1";
  });
  const bodies = Object.keys(operation.requestBody?.content ?? {});
  if (bodies.includes("multipart/form-data")) return `curl -F image=@photo.jpg ${url}`;
  if (path.endsWith("/infer")) return `curl -H 'content-type: application/json' -d @request.json ${url}`;
  return method === "get" ? `curl ${url}` : `curl -X POST ${url}`;
}

function table(head, rows) {
  const cells = (values, tag) => element("tr", values.map((value) => element(tag, value)));
  return element("table", [element("thead", cells(head, "th")), element("tbody", rows.map((row) => cells(row, "td")))]);
}

function kind(schema) {
  if (schema.enum) return schema.enum.join(" | ");
  return schema.type + ("minimum" in schema ? `, from ${schema.minimum}` : "");
}

function endpoint(path, method, operation) {
  const inside = [element("pre", element("code", example(method, path, operation)))];
  inside[0].tabIndex = 0;
  if (operation.parameters) {
    inside.push(element("h3", "Parameters"), table(["name", "in", "value"], operation.parameters.map((given) => [element("code", given.name), given.in, kind(given.schema)])));
  }
  for (const [type, body] of Object.entries(operation.requestBody?.content ?? {})) {
    inside.push(element("h3", ["Body as ", element("code", type)]));
    if (body.schema.properties) {
      const wanted = body.schema.required ?? [];
      inside.push(table(["key", "value"], Object.entries(body.schema.properties).map(([name, schema]) => [element("code", name), (schema.type ?? "any") + (wanted.includes(name) ? ", wanted" : "")])));
    }
  }
  inside.push(element("h3", "Answers"), table(["status", "meaning"], Object.entries(operation.responses).map(([status, answer]) => [status, answer.description])));
  const summary = element("summary", [element("span", method.toUpperCase(), "method"), element("code", path), element("span", operation.summary, "quiet")]);
  return element("details", [summary, element("div", inside, "inside")]);
}

async function draw() {
  const document_ = await (await fetch("openapi.json")).json();
  document.getElementById("description").textContent = document_.info.description;
  const operations = Object.entries(document_.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, operation]) => ({ path, method, operation })));
  document.getElementById("endpoints").append(...document_.tags.map(({ name }) => {
    const own = operations.filter(({ operation }) => operation.tags.includes(name));
    const card = element("section", [element("h2", name), ...own.map(({ path, method, operation }) => endpoint(path, method, operation))], "card");
    return card;
  }));
}

draw().catch((error) => { document.getElementById("description").textContent = `The description cannot be read: ${error.message}`; });
