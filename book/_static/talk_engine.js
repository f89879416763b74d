/* The model of the quickstart page in plain JavaScript: tokenizer, picture, forward pass with a KV cache, adapters.

It runs in a worker. A page that was opened as a file may not start a worker from another file, so `talk.js` starts it
from the text of this function. All matrices are (rows, columns), row after row; T tokens of width d are (T, d). */
"use strict";

function talkEngine() {
  let head, bytes, filled = 0;
  const base = {}, tuned = {}, now = { adapter: "", strength: 0 };

  // ------------------------------------------------------------------ weights
  function half(bits) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    return (bits & 0x8000 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : fraction * 2 ** -24);
  }

  // One tensor as float32: "int8" has a scale for each row before its numbers.
  function read({ kind, rows, columns, start }) {
    const count = rows * columns;
    if (kind === "float32") return new Float32Array(bytes.buffer, start, count);
    if (kind === "float16") return Float32Array.from(new Uint16Array(bytes.buffer, start, count), half);
    const scales = new Float32Array(bytes.buffer, start, rows);
    const whole = new Int8Array(bytes.buffer, start + 4 * rows, count);
    return Float32Array.from(whole, (value, i) => value * scales[(i / columns) | 0]);
  }

  // The base plus `strength` times an adapter's update (alpha / rank) B A; 1 is the adapter as it was tuned.
  function attach(adapter, strength) {
    if (now.adapter === adapter && now.strength === strength) return;
    for (const name of head.tunable) {
      const { data, rows, columns } = base[name], out = new Float32Array(data);
      const a = base[`${adapter}/${name}/A`], b = base[`${adapter}/${name}/B`], scale = head.adapters[adapter].scale;
      for (let row = 0; row < rows; row++)
        for (let r = 0; r < a.rows; r++) {
          const factor = strength * scale * b.data[row * a.rows + r];
          for (let i = 0; i < columns; i++) out[row * columns + i] += factor * a.data[r * columns + i];
        }
      tuned[name] = { data: out, rows, columns };
    }
    Object.assign(now, { adapter, strength });
  }

  // ------------------------------------------------------------------ words
  const letterOf = [], byteOf = new Map(); // each byte as a visible letter, as the vocabulary is written
  for (let byte = 0, next = 256; byte < 256; byte++) {
    const visible = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    letterOf[byte] = String.fromCharCode(visible ? byte : next++);
    byteOf.set(letterOf[byte], byte);
  }
  const PIECES = /\p{Nd}| ?[A-Za-z]+|'[a-z]+| ?[^\p{White_Space}A-Za-z\p{Nd}]+|\p{White_Space}+/gu;
  let idOf, rankOf;

  // Byte-pair encoding: the pair that was merged first in training is merged first.
  function merge(parts) {
    while (parts.length > 1) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = rankOf.get(`${parts[i]} ${parts[i + 1]}`);
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) break;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    return parts.map(part => idOf.get(part));
  }

  const lettersOf = text => [...new TextEncoder().encode(text)].map(byte => letterOf[byte]);
  const encode = text => [...text.matchAll(PIECES)].flatMap(([piece]) => merge(lettersOf(piece)));

  // A text in the midst of another, as `models.marks.Words.within` has it.
  function within(text) {
    const lead = encode("\n"), whole = encode(`\n${text}`);
    return lead.every((id, i) => whole[i] === id) ? whole.slice(lead.length) : encode(text);
  }

  // The chat template around picture and question. A special token's name in a question is cut into text.
  function promptIds(question) {
    const { before, lead, after, image, special } = head.template;
    const start = [idOf.get(special[0]), ...encode(before), ...Array(head.image_tokens).fill(idOf.get(image))];
    if (!special.some(mark => question.includes(mark))) return [...start, ...encode(lead + question + after)];
    const cuts = special.map(mark => `(?<=${mark[0]})(?=${mark.slice(1)})`).join("|");
    return [...start, ...encode(lead), ...[...question.split(new RegExp(cuts)), after].flatMap(within)];
  }

  function decode(ids) {
    const words = ids.map(id => head.vocabulary[id]).filter(word => !head.template.special.includes(word));
    return new TextDecoder().decode(Uint8Array.from(words.join(""), letter => byteOf.get(letter)));
  }

  // ------------------------------------------------------------------ layers
  // (T, columns) -> (T, rows): x W^T + bias, four rows of W at a time (their number is a multiple of four).
  function linear(x, name, bias) {
    const { data, rows, columns } = tuned[name] || base[name];
    const count = x.length / columns, out = new Float32Array(count * rows);
    for (let t = 0; t < count; t++)
      for (let row = 0; row < rows; row += 4) {
        let a = 0, b = 0, c = 0, d = 0;
        for (let i = 0, at = t * columns, w = row * columns; i < columns; i++, w++) {
          const value = x[at + i];
          a += value * data[w];
          b += value * data[w + columns];
          c += value * data[w + 2 * columns];
          d += value * data[w + 3 * columns];
        }
        const to = t * rows + row;
        out[to] = a; out[to + 1] = b; out[to + 2] = c; out[to + 3] = d;
      }
    if (bias) out.forEach((_, i) => { out[i] += base[bias].data[i % rows]; });
    return out;
  }

  // Each row of x less its mean (with a bias: LayerNorm; without: RMSNorm), over its size, times the weight.
  function norm(x, name, epsilon, centred) {
    const weight = base[`${name}.weight`].data, bias = centred && base[`${name}.bias`].data, d = weight.length;
    const out = new Float32Array(x.length);
    for (let at = 0; at < x.length; at += d) {
      let mean = 0, square = 0;
      if (centred) for (let i = 0; i < d; i++) mean += x[at + i] / d;
      for (let i = 0; i < d; i++) square += (x[at + i] - mean) ** 2 / d;
      const scale = 1 / Math.sqrt(square + epsilon);
      for (let i = 0; i < d; i++) out[at + i] = (x[at + i] - mean) * scale * weight[i] + (centred ? bias[i] : 0);
    }
    return out;
  }

  // Abramowitz and Stegun, 7.1.26: the error function within 1.5e-7.
  function gelu(x) {
    const z = Math.abs(x) / Math.SQRT2, t = 1 / (1 + 0.3275911 * z);
    const poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return 0.5 * x * (1 + Math.sign(x) * (1 - poly * Math.exp(-z * z)));
  }

  const add = (x, y) => x.forEach((value, i) => { y[i] += value; });

  // q: (T, d); keys, values: (at least `start` + T, d). Row t sees all rows, or with `causal` those up to start + t.
  // looks, if given, gets what the last row attends to, mean over heads.
  function attend(q, keys, values, heads, d, start, causal, looks) {
    const count = q.length / d, size = d / heads, scale = 1 / Math.sqrt(size), out = new Float32Array(q.length);
    for (let t = 0; t < count; t++) {
      const seen = causal ? start + t + 1 : count, share = new Float32Array(seen);
      for (let h = 0; h < heads; h++) {
        const from = t * d + h * size;
        let most = -Infinity, sum = 0;
        for (let j = 0; j < seen; j++) {
          let dot = 0;
          for (let i = 0, k = j * d + h * size; i < size; i++) dot += q[from + i] * keys[k + i];
          share[j] = dot * scale;
          if (share[j] > most) most = share[j];
        }
        for (let j = 0; j < seen; j++) sum += share[j] = Math.exp(share[j] - most);
        for (let j = 0; j < seen; j++) {
          const weight = share[j] / sum;
          for (let i = 0, v = j * d + h * size; i < size; i++) out[from + i] += weight * values[v + i];
          if (looks && t === count - 1) looks[j] += weight / heads;
        }
      }
    }
    return out;
  }

  // ------------------------------------------------------------------ the picture
  // pixels: (side, side, 4) bytes, the fourth unused -> projected image tokens (36, d).
  function see(pixels) {
    const { side, patch, width: d, heads, layers, mean, std, epsilon } = head.vision, across = side / patch;
    const cut = new Float32Array(across * across * 3 * patch * patch);
    for (let n = 0, at = 0; n < across * across; n++)
      for (let channel = 0; channel < 3; channel++)
        for (let y = 0; y < patch; y++)
          for (let x = 0; x < patch; x++) {
            const row = ((n / across) | 0) * patch + y, column = (n % across) * patch + x;
            cut[at++] = (pixels[(row * side + column) * 4 + channel] / 255 - mean[channel]) / std[channel];
          }
    const v = "vision_tower.", patches = linear(cut, `${v}embeddings.patch_embedding.weight`);
    let x = new Float32Array(base[`${v}embeddings.position_embedding.weight`].data);
    add(base[`${v}embeddings.class_embedding`].data, x);
    add(patches, x.subarray(d));
    x = norm(x, `${v}pre_layrnorm`, epsilon, true);
    for (let layer = 0; layer < layers; layer++) {
      const l = `${v}encoder.layers.${layer}.`, part = (y, name) => linear(y, `${l}${name}.weight`, `${l}${name}.bias`);
      const y = norm(x, `${l}layer_norm1`, epsilon, true);
      const [q, k, w] = ["q", "k", "v"].map(name => part(y, `self_attn.${name}_proj`));
      add(part(attend(q, k, w, heads, d, 0, false), "self_attn.out_proj"), x);
      add(part(part(norm(x, `${l}layer_norm2`, epsilon, true), "mlp.fc1").map(gelu), "mlp.fc2"), x);
    }
    const p = "multi_modal_projector.linear_";
    return linear(linear(x.subarray(d), `${p}1.weight`, `${p}1.bias`).map(gelu), `${p}2.weight`, `${p}2.bias`);
  }

  // ------------------------------------------------------------------ the language model
  // Turns each pair (i, i + size / 2) of every head by its position (RoPE).
  function turn(x, heads, d, start) {
    const size = d / heads, pairs = size / 2;
    for (let t = 0; t < x.length / d; t++)
      for (let i = 0; i < pairs; i++) {
        const angle = (start + t) / head.language.theta ** (i / pairs), cos = Math.cos(angle), sin = Math.sin(angle);
        for (let at = t * d + i; at < (t + 1) * d; at += size) {
          const [one, two] = [x[at], x[at + pairs]];
          x[at] = one * cos - two * sin;
          x[at + pairs] = two * cos + one * sin;
        }
      }
    return x;
  }

  const emptyCache = () => ({ length: 0, layers: [] });

  // Ids (with `features` in the place of image tokens) behind what the cache holds -> last states (T, d).
  // looks, if given, gets the last token's attention, mean over layers and heads.
  function readOn(ids, features, cache, looks) {
    const { width: d, heads, layers, most, epsilon } = head.language, start = cache.length;
    const table = base["language_model.model.embed_tokens.weight"].data, image = idOf.get(head.template.image);
    const x = new Float32Array(ids.length * d);
    const place = ids.indexOf(image), row = (from, at) => from.subarray(at * d, (at + 1) * d);
    ids.forEach((id, t) => x.set(id === image ? row(features, t - place) : row(table, id), t * d));
    for (let layer = 0; layer < layers; layer++) {
      const l = `language_model.model.layers.${layer}.`, part = (y, name) => linear(y, `${l}${name}.weight`);
      cache.layers[layer] ||= { keys: new Float32Array(most * d), values: new Float32Array(most * d) };
      const { keys, values } = cache.layers[layer], y = norm(x, `${l}input_layernorm`, epsilon);
      keys.set(turn(part(y, "self_attn.k_proj"), heads, d, start), start * d);
      values.set(part(y, "self_attn.v_proj"), start * d);
      const q = turn(part(y, "self_attn.q_proj"), heads, d, start);
      add(part(attend(q, keys, values, heads, d, start, true, looks), "self_attn.o_proj"), x);
      const z = norm(x, `${l}post_attention_layernorm`, epsilon), up = part(z, "mlp.up_proj");
      add(part(part(z, "mlp.gate_proj").map((g, i) => (g / (1 + Math.exp(-g))) * up[i]), "mlp.down_proj"), x);
    }
    cache.length += ids.length;
    if (looks) looks.forEach((value, i) => { looks[i] = value / layers; });
    return norm(x, "language_model.model.norm", epsilon);
  }

  const logitsOf = state => linear(state, "language_model.lm_head.weight");
  const largest = numbers => numbers.reduce((best, value, i) => (value > numbers[best] ? i : best), 0);

  // The likeliest token, again and again; `tell` hears of each. first, rest: milliseconds to the first, of each later.
  function answer({ pixels, question, adapter, strength, most }, tell) {
    const begun = performance.now(), ids = promptIds(question), cache = emptyCache(), tokens = [];
    attach(adapter, strength);
    const features = see(pixels), image = ids.indexOf(idOf.get(head.template.image)), d = head.language.width;
    let next = ids, logits, first;
    while (tokens.length < most && cache.length + next.length <= head.language.most) {
      const looks = new Float32Array(cache.length + next.length);
      const state = readOn(next, features, cache, looks).subarray(-d), last = logitsOf(state), id = largest(last);
      logits ||= last;
      first ||= performance.now() - begun;
      if (id === head.template.end) break;
      tokens.push({ id, text: decode([id]), looks: looks.slice(image, image + head.image_tokens) });
      tell({ text: decode(tokens.map(token => token.id)).trim() });
      next = [id];
    }
    const rest = (performance.now() - begun - first) / Math.max(1, tokens.length);
    return { text: decode(tokens.map(token => token.id)).trim(), tokens, logits, first, rest };
  }

  // Is this, too, what the model would answer, token by token? said: token ids.
  function same({ pixels, question, adapter, strength, answer: said }) {
    attach(adapter, strength);
    const ids = promptIds(question), states = readOn([...ids, ...said], see(pixels), emptyCache());
    const at = i => (ids.length - 1 + i) * head.language.width;
    return [...said, head.template.end].every((id, i) => largest(logitsOf(states.subarray(at(i), at(i + 1)))) === id);
  }

  const commands = {
    head(given) {
      head = given;
      bytes = new Uint8Array(head.bytes);
      idOf = new Map(head.vocabulary.map((letters, id) => [letters, id]));
      rankOf = new Map(head.merges.map((pair, rank) => [pair, rank]));
    },
    part(text) {
      const block = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
      bytes.set(block, filled);
      filled += block.length;
    },
    unpack() {
      for (const [name, about] of Object.entries(head.tensors)) base[name] = { ...about, data: read(about) };
    },
    tokens: questions => questions.map(promptIds),
    answer,
    same,
  };
  self.onmessage = ({ data: { number, command, given } }) => {
    try {
      self.postMessage({ number, result: commands[command](given, news => self.postMessage({ number, news })) });
    } catch (error) {
      self.postMessage({ number, error: String(error) });
    }
  };
}
