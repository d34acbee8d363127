// The unrolled network as SVG: arrows, cells, and a strip of squares for each mask.

const SQUARE = 9;
const SPACE = 11; // from one square to the next
const CELL = { width: 92, height: 112, gap: 60 };
const PITCH = CELL.width + CELL.gap;
const LEAD = 66; // before the first cell
const ABOVE = 78;
const ARROW = 92; // vertical arrows into a cell
const MEMORY = 17; // height of the upper arrow in a cell, from its top: c, or h of a GRU
const OPERAND = 72; // of the lower arrow, h into U

const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const path = (d, kind) => `<path class="${kind}" d="${d}"/>`;
const label = (x, y, text, kind = "") => `<text class="${kind}" x="${x}" y="${y}">${text}</text>`;

// The steps, rows and columns of the picture of a network.
function layout(layers, steps) {
  return {
    width: LEAD + steps * PITCH - 16,
    height: ABOVE + layers * (CELL.height + ARROW) + 40,
    left: (column) => LEAD + column * PITCH,
    top: (layer) => ABOVE + (layers - 1 - layer) * (CELL.height + ARROW),
  };
}

// Squares of one mask. Rows of units, or columns if the arrow is horizontal.
function strip(values, centre, upright, mixes) {
  const rows = values.length;
  const units = values[0].length;
  const size = (count) => count * SPACE - (SPACE - SQUARE);
  const wide = units === 1 ? size(3) : size(units);
  const [width, height] = upright ? [size(rows), wide] : [wide, size(rows)];
  const [x0, y0] = [centre.x - width / 2, centre.y - height / 2];
  let [kept, dropped, crosses] = ["", "", ""];
  values.forEach((row, r) =>
    row.forEach((value, u) => {
      const [along, across] = [u * SPACE, r * SPACE];
      const [x, y] = upright ? [x0 + across, y0 + along] : [x0 + along, y0 + across];
      const side = units === 1 ? wide : SQUARE;
      const box = `M${x} ${y}h${side}v${SQUARE}h${-side}z`;
      if (mixes ? value !== 1 : value !== 0) kept += box;
      else {
        dropped += box;
        if (!mixes) crosses += `M${x + side / 2 - 3} ${y + 1.5}l6 6m0-6l-6 6`;
      }
    }),
  );
  const ground = `<rect class="ground" x="${x0 - 3}" y="${y0 - 3}" width="${width + 6}" height="${height + 6}" rx="3"/>`;
  return {
    x0, y0,
    svg: ground + path(kept, "kept") + path(dropped, mixes ? "old" : "dropped") + path(crosses, "cross"),
  };
}

// Where the strip of a site is, in the cell whose corner is (left, top).
function placeOf(site, left, top, cell) {
  const [middle, right] = [left + CELL.width / 2, left + CELL.width];
  return {
    inputs: { x: middle, y: top + CELL.height + ARROW / 2 + 6 },
    outputs: { x: middle, y: top - 30 },
    recurrent: { x: left - CELL.gap / 2 + 1, y: top + OPERAND },
    hidden_state: { x: right + 13, y: top + (cell === "LSTM" ? OPERAND : MEMORY) },
    cell_state: { x: middle + 6, y: top + MEMORY },
    gates: { x: middle + 6, y: top + 50 },
    update: { x: middle + 6, y: top + 94 },
    recurrent_weights: { x: middle + 6, y: top + 70 },
  }[site];
}

const INSIDE = ["cell_state", "gates", "update", "recurrent_weights"];
const UPRIGHT = ["recurrent", "hidden_state"];

// Letters of the rows of a strip, if it has one row per gate.
function lettersOf(site, rows, cell) {
  const { letters, masked } = DATA.cells[cell];
  const single = { cell_state: "c", update: cell === "LSTM" ? "g" : "n", recurrent_weights: "U" };
  if (single[site]) return [single[site]];
  return rows > 1 ? [...(site === "gates" ? masked : letters)] : [];
}

function stripOf(mask, at, view) {
  const { site, layer, step } = at;
  const gate = site === "recurrent_weights" ? 0 : null;
  const values = maskAt(mask, step, view.example, gate);
  const centre = placeOf(site, at.left, at.top, view.cell);
  const upright = UPRIGHT.includes(site);
  const drawn = strip(values, centre, upright, mask.noise.kind === "Zoneout");
  const letters = lettersOf(site, values.length, view.cell);
  const names = at.first || INSIDE.includes(site) ? letters : [];
  const texts = names.map((letter, n) => {
    const along = n * SPACE + SQUARE / 2;
    if (upright) return label(drawn.x0 + along, drawn.y0 - 7, letter, "tiny");
    return label(drawn.x0 - 9, drawn.y0 + (names.length > 1 ? along : SQUARE / 2) + 3, letter, "tiny");
  });
  const said = sayStrip(mask, values, letters, at, view);
  return (
    `<g class="strip ${DATA.sites[site].stream}" role="img" tabindex="-1" data-site="${site}" data-layer="${layer}"` +
    ` data-step="${step}" aria-label="${escaped(said)}">${drawn.svg}${texts.join("")}</g>`
  );
}

// What a strip shows, in words.
function sayStrip(mask, values, letters, { site, layer, step, layers }, view) {
  const verb = mask.noise.kind === "Zoneout" ? "keep their old value" : "dropped";
  const hit = (value) => (mask.noise.kind === "Zoneout" ? value === 1 : value === 0);
  const rows = values.map((row, n) => {
    const units = range(row.length).filter((u) => hit(row[u]));
    const whole = row.length === 1;
    const list = whole ? (units.length ? "all units" : "none") : units.length ? `units ${units.join(", ")}` : "none";
    const head = site === "recurrent_weights" ? `from unit ${n}: ` : values.length > 1 ? `${letters[n]}: ` : "";
    return head + list;
  });
  const of = site === "recurrent_weights" ? `, weights of gate ${DATA.cells[view.cell].letters[0]}` : "";
  const where = layers > 1 ? `layer ${layer}, ` : "";
  return `Step ${step}, ${where}${DATA.sites[site].arrow.slice(2)} (${site})${of}; ${verb}: ${rows.join("; ")}.`;
}

// The arrows around one cell. `on` says which sites have noise in a layer.
function arrowsOf(left, top, view, on, last) {
  const [middle, right, bottom] = [left + CELL.width / 2, left + CELL.width, top + CELL.height];
  const up = (noisy) => `arrow${noisy ? " inputs" : ""}`;
  const side = (noisy) => `arrow${noisy ? " recurrent" : ""}`;
  const into = left - (last.first ? LEAD - 6 : CELL.gap);
  const memory = top + MEMORY;
  const operand = top + OPERAND;
  const parts = [
    path(`M${middle} ${bottom + ARROW - 4}V${bottom + 3}`, up(on.has("inputs"))),
    path(`M${middle} ${top}V${top - (last.top ? 56 : ARROW - 4)}`, up(on.has("outputs"))),
  ];
  if (view.cell === "LSTM") {
    parts.push(path(`M${into} ${memory}H${left - 3}`, side(on.has("cell_state"))));
    parts.push(path(`M${into} ${operand}H${left - 3}`, side(on.has("recurrent") || on.has("hidden_state"))));
  } else {
    const branch = left - (last.first ? LEAD - 16 : CELL.gap - 26);
    const state = on.has("hidden_state");
    parts.push(path(`M${into} ${memory}H${left - 3}`, side(state)));
    parts.push(path(`M${branch} ${memory}V${operand}H${left - 3}`, side(state || on.has("recurrent"))));
  }
  if (last.last) parts.push(path(`M${right} ${view.cell === "LSTM" ? operand : memory}h22`, side(on.has("hidden_state"))));
  if (last.last && view.cell === "LSTM") parts.push(path(`M${right} ${memory}h22`, side(on.has("cell_state"))));
  return parts.join("");
}

// The whole picture. `view` has the cell, the example, and the steps to show.
function picture(masks, view) {
  const { first, steps, cell } = view;
  const layers = masks.length;
  const at = layout(layers, steps);
  const parts = [];
  const strips = [];
  for (const layer of range(layers).reverse()) {
    const on = new Set(Object.keys(masks[layer]));
    const inside = INSIDE.some((site) => on.has(site));
    for (const column of range(steps)) {
      const [left, top] = [at.left(column), at.top(layer)];
      const ends = { first: column === 0, last: column === steps - 1, top: layer === layers - 1 };
      parts.push(arrowsOf(left, top, view, on, ends));
      parts.push(`<rect class="cell${inside ? " noisy" : ""}" x="${left}" y="${top}" width="${CELL.width}" height="${CELL.height}" rx="9"/>`);
      if (cell === "GRU") parts.push(path(`M${left} ${top + MEMORY}h${CELL.width}`, "leak"));
      if (!inside) parts.push(label(left + CELL.width / 2, top + OPERAND + 4, cell, "name"));
      for (const site of on) {
        const where = { site, layer, layers, step: first + column, left, top, first: column === 0 };
        strips.push(stripOf(masks[layer][site], where, view));
      }
    }
    const labels = cell === "LSTM" ? ["c", "h"] : ["h", ""];
    const end = at.left(steps - 1) + CELL.width + 36;
    parts.push(label(end, at.top(layer) + MEMORY + 4, labels[0], "small"));
    parts.push(label(end, at.top(layer) + OPERAND + 4, labels[1], "small"));
  }
  for (const column of range(steps)) {
    const middle = at.left(column) + CELL.width / 2;
    const index = `<tspan dy="4" font-size="0.75em">${first + column}</tspan>`;
    parts.push(label(middle, ABOVE - 62, `y${index}`));
    parts.push(label(middle, at.height - 28, `x${index}`));
    parts.push(label(middle, at.height - 5, `step ${first + column}`, "small"));
  }
  return (
    `<svg viewBox="0 0 ${at.width} ${at.height}" width="${at.width}" role="group" aria-label="The network at steps ${first} to ${first + steps - 1}">` +
    `<defs>${["plain", "inputs", "recurrent"].map(head).join("")}</defs>${parts.join("")}${strips.join("")}</svg>`
  );
}

const head = (kind) =>
  `<marker id="${kind}" viewBox="0 0 10 10" refX="7" refY="5" markerWidth="7" markerHeight="7" markerUnits="userSpaceOnUse"` +
  ` orient="auto"><path class="head ${kind}" d="M0 0 10 5 0 10z"/></marker>`;
