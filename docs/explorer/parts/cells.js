// The equations of the LSTM and the GRU of rdrop, for one example, under masks.

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const range = (count) => Array.from({ length: count }, (_, n) => n);

// (m * x) W of all gates; each gate may have its own mask of x.
function product(x, kernel, mask, gates) {
  const units = kernel[0].length / gates;
  return range(gates).map((g) =>
    range(units).map((u) => {
      const of = mask && mask[mask.length > 1 ? g : 0];
      return x.reduce((sum, value, row) => sum + (of ? of[row] : 1) * value * kernel[row][g * units + u], 0);
    }),
  );
}

// U with dropped weights.
function droppedKernel(kernel, mask, gates) {
  if (!mask) return kernel;
  const byGate = range(gates).map((g) => maskAt(mask, 0, 0, g));
  return kernel.map((row, r) => row.map((w, k) => w * byGate[Math.floor(k / (row.length / gates))][r][k % (row.length / gates)]));
}

// A state as the next step sees it: multiplied by its mask, or mixed with the old one.
function passed(fresh, old, mask, units) {
  if (!mask) return fresh;
  const m = (u) => mask.values[mask.values.length > 1 ? u : 0];
  return range(units).map((u) => (mask.mixes ? m(u) * old[u] + (1 - m(u)) * fresh[u] : m(u) * fresh[u]));
}

// The state after each step: c of an LSTM, h of a GRU.
function run(name, masks, xs, start, example) {
  const cell = DATA.cells[name];
  const { kernel, recurrent_kernel, bias } = cell.params;
  const gates = cell.letters.length;
  const units = start.length;
  const U = droppedKernel(recurrent_kernel, masks.recurrent_weights, gates);
  const at = (site, step) => masks[site] && maskAt(masks[site], step, example);
  const state = (site, step) =>
    masks[site] && { values: at(site, step)[0], mixes: masks[site].noise.kind === "Zoneout" };
  let h = start;
  let c = start;
  return xs.map((x, step) => {
    const fromX = product(x, kernel, at("inputs", step), gates);
    const fromH = product(h, U, at("recurrent", step), gates);
    const a = (g, u) => fromX[g][u] + bias[g * units + u];
    const onGates = at("gates", step);
    const onUpdate = at("update", step);
    const factor = (mask, row, u) => (mask ? mask[row][mask[row].length > 1 ? u : 0] : 1);
    const gate = (g, row, u) => factor(onGates, onGates && onGates.length > 1 ? row : 0, u) * sigmoid(a(g, u) + fromH[g][u]);
    if (name === "GRU") {
      const fresh = range(units).map((u) => {
        const n = Math.tanh(a(2, u) + gate(1, 1, u) * fromH[2][u]);
        const z = gate(0, 0, u);
        return z * h[u] + (1 - z) * factor(onUpdate, 0, u) * n;
      });
      h = passed(fresh, h, state("hidden_state", step), units);
      return h;
    }
    const fresh = range(units).map(
      (u) => gate(1, 1, u) * c[u] + gate(0, 0, u) * factor(onUpdate, 0, u) * Math.tanh(a(2, u) + fromH[2][u]),
    );
    const next = passed(fresh, c, state("cell_state", step), units);
    const seen = masks.cell_state && masks.cell_state.noise.kind !== "Zoneout" ? next : fresh;
    const out = range(units).map((u) => gate(3, 2, u) * Math.tanh(seen[u]));
    h = passed(out, h, state("hidden_state", step), units);
    c = next;
    return c;
  });
}
