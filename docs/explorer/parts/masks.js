// The random numbers and the masks of rdrop, bit for bit.

const ROTATIONS = [[13, 15, 26, 6], [17, 29, 16, 24]];

// Threefry-2x32, 20 rounds: enciphers two words with a key of two words.
function threefry(key, high, low) {
  const schedule = [key[0], key[1], key[0] ^ key[1] ^ 0x1bd11bda];
  high = (high + schedule[0]) | 0;
  low = (low + schedule[1]) | 0;
  for (let group = 0; group < 5; group++) {
    for (const rotation of ROTATIONS[group % 2]) {
      high = (high + low) | 0;
      low = high ^ ((low << rotation) | (low >>> (32 - rotation)));
    }
    high = (high + schedule[(group + 1) % 3]) | 0;
    low = (low + schedule[(group + 2) % 3] + group + 1) | 0;
  }
  return [high, low];
}

const foldIn = (key, data) => threefry(key, 0, data | 0);

// The number that stands for a name.
function crc32(name) {
  let crc = -1;
  for (const letter of name) {
    crc ^= letter.charCodeAt(0);
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc;
}

// The key of a site: stream, layer, direction and name, folded in one after the other.
function siteKey(seed, stream, layer, direction, site) {
  const coordinates = [crc32(stream), layer, crc32(direction), crc32(site)];
  return coordinates.reduce(foldIn, [0, seed]);
}

// Numbers in [0, 1): 23 of the bits to which the index of each is enciphered.
function uniform(key, size) {
  const numbers = new Float32Array(size);
  for (let index = 0; index < size; index++) {
    const [high, low] = threefry(key, 0, index);
    numbers[index] = ((high ^ low) >>> 9) / 2 ** 23;
  }
  return numbers;
}

// One mask: a unit is kept if its number is at least the rate; zoneout is 1 if it keeps
// the old value.
function maskOf(noise, rate, key, size) {
  const p = Math.fround(rate);
  const scaled = noise.kind !== "Zoneout" && noise.scale !== "expectation" && p < 1;
  const kept = scaled ? 1 / Math.fround(1 - p) : 1;
  return uniform(key, size).map((u) => (noise.kind === "Zoneout" ? +(u < p) : u >= p ? kept : 0));
}

// (B, G, U), or (R, G, U) of a mask on weights; an axis of size 1 is shared.
function shapeOf(noise, site, batch) {
  if (noise.kind === "DropConnect") return [site.rows, site.gates, site.units];
  return [
    noise.batch === "each" ? batch : 1,
    noise.gates === "each" ? site.gates : 1,
    noise.units === "each" ? site.units : 1,
  ];
}

// The masks of each layer as rdrop.draw has them: a site has its noise, the shape of one
// mask, and one mask if it is held over the sequence, else one mask per step.
function draw(layers, rates, cell, place) {
  const { seed, batch, time, step = 0, direction = "forward" } = place;
  return layers.map((noises, layer) => {
    const masks = {};
    for (const noise of noises) {
      const key = siteKey(seed, DATA.sites[noise.site].stream, layer, direction, noise.site);
      const shape = shapeOf(noise, DATA.cells[cell].sites[noise.site], batch);
      const size = shape[0] * shape[1] * shape[2];
      const steps = noise.per === "step" ? Array.from({ length: time }, (_, t) => step + t) : [null];
      const keys = steps.map((t) => (t === null ? key : foldIn(key, t)));
      masks[noise.site] = { noise, shape, values: keys.map((k) => maskOf(noise, rates[noise.rate], k, size)) };
    }
    return masks;
  });
}

// The mask of an example at a step: rows of gates (of a kernel: its rows), all units.
function maskAt(mask, step, example, gate = null) {
  const [first, gates, units] = mask.shape;
  const values = mask.values[mask.values.length > 1 ? step : 0];
  const row = (r, g) => values.slice((r * gates + g) * units, (r * gates + g + 1) * units);
  if (gate !== null) return Array.from({ length: first }, (_, r) => row(r, gate));
  return Array.from({ length: gates }, (_, g) => row(first > 1 ? example : 0, g));
}
