// The page: reads the controls, draws the masks, and shows picture, state and code.

const TIME = 40; // steps of the state
const BATCH = 2;
const find = (id) => document.getElementById(id);
const METHODS = Object.fromEntries(DATA.methods.map((method) => [method.name, method]));
const HELP = "Point at a strip of squares, or move through the strips with the arrow keys.";
const VIEW = { method: "keras", cell: "LSTM", seed: 7, example: 0, first: 0, steps: 6, rates: {}, options: {} };

// What is chosen: the rates of the method, and the noise of each layer at these rates.
function chosen() {
  const method = METHODS[VIEW.method];
  const rates = method.rates.map((name) => VIEW.rates[name] ?? 0.5);
  const options = Object.fromEntries(
    Object.entries(method.options).map(([name, values]) => [name, VIEW.options[name] ?? values[0]]),
  );
  const same = (form) => Object.entries(options).every(([name, value]) => form.options[name] === value);
  const forms = method.forms.filter(same);
  const zero = forms.find((form) => form.zero && rates[method.rates.indexOf(form.zero)] === 0);
  return { method, rates, options, layers: (zero ?? forms[0]).layers };
}

// --- words ---

const python = (value) => (value === true ? "True" : value === false ? "False" : typeof value === "string" ? `"${value}"` : String(value));

function filled(template, { method, rates, options }) {
  const values = { ...options, cell: null };
  method.rates.forEach((name, n) => (values[name] = rates[n]));
  return template.replace(/{(\w+)}/g, (_, name) => (name === "cell" ? VIEW.cell : python(values[name])));
}

// Long calls have one argument per line.
function wrapped(call, width) {
  if (call.length < width) return call;
  const open = call.indexOf("(");
  const inner = call.slice(open + 1, -1).replace(/, (?=\w+=)/g, ",\n    ");
  return `${call.slice(0, open)}(\n    ${inner},\n)`;
}

// Subscripts and code of a docstring as HTML.
function mathematics(text) {
  return escaped(text)
    .replace(/&#96;|`/g, "")
    .replace(/\b([A-Za-z]'?)_(?:\{([^}]+)\}|(\w)(?!\w))/g, (_, name, index, letter) => `${name}<sub>${index ?? letter}</sub>`)
    .replace(/ \* /g, " · ");
}

function rdropCode(choice) {
  const stacked = choice.layers.length > 1;
  const cell = `rdrop.${VIEW.cell}Cell(${DATA.units})`;
  const layer = `rdrop.RNN(${cell})`;
  const rnn = stacked ? `rdrop.Stack([\n    ${layer},\n    ${layer},\n])` : layer;
  const drawn = stacked
    ? [
        "masks = [  # of each layer",
        "    rdrop.draw(",
        `        noise, keys.replace(layer=n), sites, batch=${BATCH}, time=${TIME}`,
        "    )",
        "    for n, noise in enumerate(dropout)",
        "]",
      ]
    : [`masks = rdrop.draw(dropout, keys, sites, batch=${BATCH}, time=${TIME})`];
  return [
    "import jax",
    "import rdrop",
    "",
    `dropout = ${wrapped(filled(choice.method.call, choice), 62)}`,
    `keys = rdrop.stream_keys(jax.random.key(${VIEW.seed}))`,
    "",
    "# The masks of the picture.",
    `sites = ${cell}.sites(features=${DATA.units})`,
    ...drawn,
    "",
    "# A layer with this noise.",
    `rnn = ${rnn}`,
    `xs = jax.random.normal(jax.random.key(0), (${BATCH}, ${TIME}, ${DATA.units}))`,
    "params = rnn.init(jax.random.key(1), xs)",
    "carry, ys = rnn.apply(params, xs, dropout, keys)",
    "carry, ys = rnn.apply(params, xs, dropout)  # evaluation",
  ].join("\n");
}

function saySite(noise, layers) {
  const words = [noise.per === "step" ? "a new mask at each step" : "one mask for all steps"];
  if (noise.gates === "each") words.push(noise.units === "shared" ? "one number per gate" : "one mask per gate");
  else if (noise.gates && ["inputs", "recurrent"].includes(noise.site)) words.push("shared by the gates");
  if (noise.kind === "DropConnect") words.push("shared by all examples; the picture has the weights of the first gate");
  else words.push(noise.batch === "each" ? "one per example" : "shared by all examples");
  if (noise.kind === "Zoneout") words.push("a unit keeps its old value, or takes the new one; evaluation mixes both by the rate");
  else if (noise.scale === "expectation") words.push("0 or 1; evaluation multiplies by 1 − rate");
  else words.push("0 or 1 / (1 − rate); evaluation has no mask");
  return (layers ? `${layers}: ` : "") + words.join(", ") + ".";
}

// The sites in use, each with its noise and the layers that have it.
function sitesOf(layers) {
  const found = new Map();
  layers.forEach((noises, layer) =>
    noises.forEach((noise) => {
      const key = JSON.stringify({ ...noise, rate: 0 });
      if (!found.has(key)) found.set(key, { noise, at: [] });
      found.get(key).at.push(layer);
    }),
  );
  return [...found.values()].map(({ noise, at }) => {
    const { arrow, stream } = DATA.sites[noise.site];
    const where = layers.length === 1 ? "" : at.length > 1 ? "both layers" : at[0] ? "upper layer" : "lower layer";
    return `<dt class="${stream}">${arrow} <code>${noise.site}</code></dt><dd>${escaped(saySite(noise, where))}</dd>`;
  });
}

// --- the state ---

function short(value) {
  const small = (Number(value.toFixed(2)) || 0).toFixed(2); // never "-0.00"
  const text = Math.abs(value) < 1000 ? small : value.toExponential(1);
  return text.replace("-", "−").replace(/e\+(\d+)/, " · 10<sup>$1</sup>");
}

function fate(noisy, clean) {
  if (!(Math.abs(noisy) <= 10)) return "exploded";
  return Math.abs(noisy - clean) > 0.5 * Math.abs(clean) ? "forgotten" : "kept";
}

// The state with and without masks. Of a stack, the upper layer reads the inputs here.
function traces(masks) {
  const top = masks[masks.length - 1];
  const noisy = run(VIEW.cell, top, DATA.xs, DATA.start, VIEW.example);
  const clean = run(VIEW.cell, {}, DATA.xs, DATA.start, VIEW.example);
  return range(DATA.units).map((unit) => {
    const of = (states) => [DATA.start[unit], ...states.map((state) => state[unit])];
    const [a, b] = [of(noisy), of(clean)];
    return { noisy: a, clean: b, fate: fate(a[TIME], b[TIME]) };
  });
}

function drawTrace(trace, unit) {
  const x = (t) => ((t / TIME) * 200).toFixed(1);
  const largest = Math.max(...trace.noisy.map(Math.abs));
  const scaled = trace.fate === "exploded" ? (value) => 1.2 * (Math.asinh(value) / Math.asinh(largest)) : (value) => value;
  const y = (value) => (32 - 24 * Math.max(-1.3, Math.min(1.3, scaled(value)))).toFixed(1);
  const line = (values, kind) => path(`M${values.map((value, t) => `${x(t)} ${y(value)}`).join("L")}`, kind);
  const end = trace.noisy[TIME];
  return (
    `<figure class="${trace.fate}"><figcaption><span>unit ${unit}</span><span>${trace.fate}, ${short(end)}</span></figcaption>` +
    `<svg viewBox="0 0 200 64" preserveAspectRatio="none" aria-hidden="true">` +
    `<rect class="window" x="${x(VIEW.first)}" y="0" width="${x(VIEW.steps)}" height="64"/>` +
    `${path("M0 32H200", "zero")}${line(trace.clean, "clean")}${line(trace.noisy, "noisy")}</svg></figure>`
  );
}

const WHY = {
  exploded: "The mask is on the path that carries the state: a unit that is kept grows by 1 / (1 − rate) at each step.",
  forgotten: "The mask is on the path that carries the state, so what it drops is lost.",
  mixed: "Units keep their old value or take the new one, so the noise loses nothing.",
  aside: "No mask is on the path that carries the state: noise reaches it through the gates and the candidate only.",
};

// Whether the noise of a layer multiplies or mixes the state itself.
function onState(noises) {
  const sites = VIEW.cell === "LSTM" ? ["cell_state", "gates"] : ["hidden_state", "gates"];
  const found = noises.find((noise) => sites.includes(noise.site));
  return found && (found.kind === "Zoneout" ? "mixed" : "multiplied");
}

function verdict(found, noises) {
  const count = (kind) => found.filter((trace) => trace.fate === kind).length;
  const said = ["kept", "forgotten", "exploded"].filter(count).map((kind) => `${count(kind)} ${kind}`);
  const how = onState(noises);
  const why = how === "multiplied" ? WHY[count("exploded") ? "exploded" : "forgotten"] : WHY[how ?? "aside"];
  return { said: `After ${TIME} steps, of ${DATA.units} units: ${said.join(", ")}.`, why };
}

// --- showing it ---

let latest = null;

function update() {
  const choice = chosen();
  const place = { seed: VIEW.seed, batch: BATCH, time: TIME };
  const masks = draw(choice.layers, choice.rates, VIEW.cell, place);
  const found = traces(masks);
  const end = verdict(found, choice.layers[choice.layers.length - 1]);
  const { method } = choice;
  find("about").innerHTML = mathematics(`${method.about}.`);
  find("equation").innerHTML = mathematics(method.equation);
  find("docstring").innerHTML = mathematics(method.docstring);
  showPicture(masks);
  find("sites").innerHTML = sitesOf(choice.layers).join("");
  find("verdict").textContent = `${end.said} ${end.why}`;
  find("traces").innerHTML = found.map(drawTrace).join("");
  const state = VIEW.cell === "LSTM" ? "memory c" : "state h";
  const which = choice.layers.length > 1 ? " It is the upper layer, run alone." : "";
  find("setting").textContent =
    `The ${state} of a small ${VIEW.cell} with fixed weights that holds what it begins with and reads a weak signal.${which}`;
  find("rdrop-code").textContent = rdropCode(choice);
  showOther(choice);
  latest = { choice, masks, said: `${method.label}, ${VIEW.cell}, key ${VIEW.seed}. ${end.said}` };
  announce();
  remember();
}

function showPicture(masks) {
  VIEW.steps = matchMedia("(max-width: 40rem)").matches ? 3 : 6;
  find("first").max = TIME - VIEW.steps;
  VIEW.first = Math.min(VIEW.first, TIME - VIEW.steps);
  find("first").value = VIEW.first;
  find("first-shown").textContent = VIEW.first;
  find("picture").innerHTML = picture(masks, VIEW);
  find("detail").textContent = HELP;
}

function showOther(choice) {
  const { method } = choice;
  const has = method.code && (VIEW.cell === "LSTM" || method.code.includes("{cell}"));
  find("other").hidden = !has;
  find("library").textContent = method.library;
  find("other-code").textContent = has ? filled(method.code, choice).split("\n").map((line) => (line[0] === " " ? line : wrapped(line, 44))).join("\n") : "";
  const none = has ? "" : method.code ? `${method.library} has no ${VIEW.cell} of this kind. ` : "Neither Keras nor PyTorch has a layer with all of this. ";
  find("source").textContent = none + method.source;
}

let waiting = 0;

function announce() {
  clearTimeout(waiting);
  waiting = setTimeout(() => (find("status").textContent = latest.said), 600);
}

// --- controls ---

function slider(name) {
  const value = VIEW.rates[name] ?? 0.5;
  return (
    `<label class="field" for="rate-${name}"><span class="head"><code>${name}</code><output for="rate-${name}">${value.toFixed(2)}</output></span>` +
    `<input type="range" id="rate-${name}" data-rate="${name}" min="0" max="0.95" step="0.05" value="${value}"></label>`
  );
}

function option(name, values) {
  const now = VIEW.options[name] ?? values[0];
  if (typeof now === "boolean")
    return `<label class="check"><input type="checkbox" data-option="${name}"${now ? " checked" : ""}><code>${name}</code></label>`;
  const choices = values.map((value) => `<option${value === now ? " selected" : ""}>${value}</option>`).join("");
  return `<label class="field" for="option-${name}"><code>${name}</code><select id="option-${name}" data-option="${name}">${choices}</select></label>`;
}

function radios(id, values, now, words) {
  const one = (value, n) =>
    `<label><input type="radio" name="${id}" value="${value}"${value === now ? " checked" : ""}>${words[n]}</label>`;
  find(id).insertAdjacentHTML("beforeend", values.map(one).join(""));
}

function showControls() {
  const method = METHODS[VIEW.method];
  if (!method.cells.includes(VIEW.cell)) VIEW.cell = method.cells[0];
  find("method").value = VIEW.method;
  find("rates").innerHTML = method.rates.map(slider).join("");
  find("options").innerHTML = Object.entries(method.options).map(([name, values]) => option(name, values)).join("");
  find("seed").value = VIEW.seed;
  for (const radio of document.querySelectorAll('input[name="cell"]')) {
    radio.disabled = !method.cells.includes(radio.value);
    radio.checked = radio.value === VIEW.cell;
  }
}

function menu() {
  const groups = { libraries: "Libraries and their versions", papers: "Papers" };
  const one = ({ name, label: text }) => `<option value="${name}">${escaped(text)}</option>`;
  find("method").innerHTML = Object.entries(groups)
    .map(([group, title]) => `<optgroup label="${title}">${DATA.methods.filter((m) => m.group === group).map(one).join("")}</optgroup>`)
    .join("");
}

function onInput({ target }) {
  if (target.id === "seed") {
    if (!target.validity.valid) return;
    VIEW.seed = Number(target.value);
  } else if (target.id === "method") {
    VIEW.method = target.value;
    VIEW.options = {};
    showControls();
  } else if (target.name === "cell") VIEW.cell = target.value;
  else if (target.name === "example") VIEW.example = Number(target.value);
  else if (target.dataset.rate) {
    VIEW.rates[target.dataset.rate] = Number(target.value);
    target.previousElementSibling.lastElementChild.textContent = Number(target.value).toFixed(2);
  } else if (target.dataset.option) VIEW.options[target.dataset.option] = target.type === "checkbox" ? target.checked : target.value;
  update();
}

function onNewKey() {
  VIEW.seed = Math.floor(Math.random() * 2 ** 31);
  find("seed").value = VIEW.seed;
  update();
}

// Arrow keys move from strip to strip: in time, or to the next mask of a step.
function onKey(event) {
  const moves = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  const move = moves[event.key];
  const strips = [...find("picture").querySelectorAll(".strip")];
  if (!move || !strips.length) return;
  event.preventDefault();
  const now = document.activeElement.closest(".strip");
  if (!now) return strips[0].focus();
  const row = (strip) => `${strip.dataset.layer} ${strip.dataset.site}`;
  const rows = [...new Set(strips.map(row))];
  const next = rows[(rows.indexOf(row(now)) + move[1] + rows.length) % rows.length];
  const step = Number(now.dataset.step) + move[0];
  strips.find((strip) => row(strip) === next && Number(strip.dataset.step) === step)?.focus();
}

function showDetail({ target }) {
  const strip = target.closest(".strip");
  if (strip) find("detail").textContent = strip.getAttribute("aria-label");
}

async function onCopy({ target }) {
  const code = find(target.dataset.copy);
  let word = "Copied";
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    getSelection().selectAllChildren(code);
    word = "Selected";
  }
  target.textContent = word;
  find("status").textContent = `${word}.`;
  setTimeout(() => (target.textContent = "Copy"), 1500);
}

// The address has the method, the cell, the key and the rates, so that it can be shared.
function remember() {
  const { method, rates, options } = latest.choice;
  const query = new URLSearchParams({ method: method.name, cell: VIEW.cell, seed: VIEW.seed, ...options });
  method.rates.forEach((name, n) => query.set(name, rates[n]));
  history.replaceState(null, "", `#${query}`);
}

function recall() {
  const query = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const method = METHODS[query.method];
  if (!method) return;
  VIEW.method = method.name;
  if (method.cells.includes(query.cell)) VIEW.cell = query.cell;
  if (/^\d{1,10}$/.test(query.seed) && Number(query.seed) < 2 ** 31) VIEW.seed = Number(query.seed);
  for (const name of method.rates) if (query[name] >= 0 && query[name] < 1) VIEW.rates[name] = Number(query[name]);
  for (const [name, values] of Object.entries(method.options)) {
    const value = values.find((each) => String(each) === query[name]);
    if (value !== undefined) VIEW.options[name] = value;
  }
}

function start() {
  menu();
  recall();
  radios("cell", Object.keys(DATA.cells), VIEW.cell, Object.keys(DATA.cells));
  radios("example", range(BATCH), VIEW.example, range(BATCH).map((n) => n + 1));
  showControls();
  find("controls").addEventListener("input", onInput);
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("new-key").addEventListener("click", onNewKey);
  find("first").addEventListener("input", ({ target }) => {
    VIEW.first = Number(target.value);
    update();
  });
  find("picture").addEventListener("keydown", onKey);
  for (const event of ["focusin", "mouseover", "click"]) find("picture").addEventListener(event, showDetail);
  for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", onCopy);
  matchMedia("(max-width: 40rem)").addEventListener("change", update);
  addEventListener("hashchange", () => {
    recall();
    showControls();
    update();
  });
  update();
}

start();
