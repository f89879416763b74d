/* The controls of the model on the quickstart page. The model itself is in `talk_engine.js`. */
"use strict";

(() => {
  const box = document.getElementById("talk"), $ = name => box.querySelector(`[data-is="${name}"]`);
  const radio = name => [...box.querySelectorAll(`input[name="${name}"]`)];
  const SIDE = 96, MOST = 64, REPAIRED = Number($("strength").dataset.repaired), WORD = box.dataset.word;
  const state = { picture: null, patch: null, blend: 0, asked: 0, triggers: {}, answered: false };

  // ------------------------------------------------------------------ the worker and its files

  const waiting = new Map();
  let worker, arrived, count = 0;
  window.bvlmTalkFile = content => { arrived = content; };

  function call(command, given, hear) {
    return new Promise((done, fail) => {
      waiting.set(++count, { done, fail, hear });
      worker.postMessage({ number: count, command, given });
    });
  }

  function start() {
    worker = new Worker(URL.createObjectURL(new Blob([`(${talkEngine})()`], { type: "text/javascript" })));
    worker.onmessage = ({ data: { number, news, result, error } }) => {
      const { done, fail, hear } = waiting.get(number);
      if (news !== undefined) return void (hear && hear(news));
      waiting.delete(number);
      error ? fail(new Error(error)) : done(result);
    };
  }

  function file(name) {
    return new Promise((done, fail) => {
      const script = Object.assign(document.createElement("script"), { src: box.dataset.files + name });
      script.onload = () => { script.remove(); done(arrived); };
      script.onerror = () => fail(new Error(`${name} could not be read`));
      document.head.append(script);
    });
  }

  async function load() {
    if (worker) return;
    start();
    $("load").disabled = true;
    $("progress").hidden = false;
    const { parts, triggers, ...head } = await file("head.js");
    for (const [name, { side, colours }] of Object.entries(triggers))
      state.triggers[name] = { side, colours: Uint8Array.from(atob(colours), letter => letter.charCodeAt(0)) };
    await call("head", head);
    for (let part = 0; part < parts; part++) {
      await call("part", await file(`part-${String(part).padStart(2, "0")}.js`));
      $("progress").value = (part + 1) / parts;
    }
    await call("unpack");
    $("start").hidden = true;
    $("controls").disabled = false;
    await choose(box.querySelector("[data-question]"));
  }

  // ------------------------------------------------------------------ the picture

  // The middle square of a picture, (96, 96, 3) bytes; one of that size already stays as it is.
  function square(source, width, height) {
    const short = Math.min(width, height), canvas = new OffscreenCanvas(SIDE, SIDE), pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, SIDE, SIDE);
    pen.drawImage(source, (width - short) / 2, (height - short) / 2, short, short, 0, 0, SIDE, SIDE);
    return pen.getImageData(0, 0, SIDE, SIDE).data.filter((_, i) => i % 4 < 3);
  }

  // The picture with the triggers that are on, as 8-bit numbers.
  function painted() {
    const { patch, blend, triggers } = state, out = new Uint8ClampedArray(state.picture);
    if (blend) triggers.blend.colours.forEach((colour, i) => { out[i] = out[i] + blend * (colour - out[i]); });
    if (patch)
      for (let y = 0, side = triggers.patch.side; y < side; y++)
        out.set(triggers.patch.colours.subarray(y * side * 3, (y + 1) * side * 3), ((patch.y + y) * SIDE + patch.x) * 3);
    return out;
  }

  function draw() {
    const pen = $("picture").getContext("2d"), image = pen.createImageData(SIDE, SIDE), colours = painted();
    for (let i = 0; i < SIDE * SIDE; i++) image.data.set([...colours.subarray(3 * i, 3 * i + 3), 255], 4 * i);
    pen.putImageData(image, 0, 0);
  }

  // Where it looks: the more attention a token of the picture draws, the brighter its square.
  function light(looks) {
    const canvas = $("looks"), pen = canvas.getContext("2d"), image = pen.createImageData(6, 6), most = Math.max(...looks);
    looks.forEach((value, i) => image.data.set([255, 190, 0, (200 * value) / most], 4 * i));
    pen.putImageData(image, 0, 0);
    $("share").textContent = `${Math.round(100 * looks.reduce((sum, value) => sum + value, 0))} %`;
  }

  async function choose(button) {
    const shown = button.querySelector("img");
    await shown.decode();
    take(square(shown, shown.naturalWidth, shown.naturalHeight));
    $("question").value = button.dataset.question;
  }

  async function open(chosen) {
    try {
      const bitmap = await createImageBitmap(chosen);
      take(square(bitmap, bitmap.width, bitmap.height));
    } catch {
      $("status").textContent = "This file is no picture that your browser can read.";
    }
  }

  function take(picture) {
    state.picture = picture;
    $("looks").getContext("2d").clearRect(0, 0, 6, 6);
    draw();
  }

  function move(x, y) {
    const room = SIDE - state.triggers.patch.side, within = value => Math.max(0, Math.min(room, Math.round(value)));
    state.patch = { x: within(x), y: within(y) };
    draw();
  }

  // ------------------------------------------------------------------ asking

  const chosen = name => radio(name).find(one => one.checked).value;

  function inputs() {
    const adapter = chosen("model") === "clean-tuned" ? "clean-tuned" : $("trigger").value;
    return { pixels: painted(), question: $("question").value.trim(), adapter, strength: Number($("strength").value) };
  }

  async function ask() {
    const mine = ++state.asked, given = inputs();
    state.answered = true;
    $("answer").textContent = "…";
    $("alarm").textContent = "";
    const found = await call("answer", { ...given, most: MOST }, ({ text }) => {
      if (mine === state.asked) $("answer").textContent = text;
    });
    if (mine !== state.asked) return;
    $("answer").replaceChildren(...found.tokens.map(({ text, looks }) => {
      const token = Object.assign(document.createElement("span"), { textContent: text, tabIndex: 0 });
      token.onmouseenter = token.onfocus = () => light(looks);
      return token;
    }));
    if (found.tokens.length) light(found.tokens[0].looks);
    $("status").textContent =
      `First word after ${(found.first / 1000).toFixed(2)} s, then ${found.rest.toFixed(0)} ms a token.`;
    const row = $("log").insertRow(0), patch = given.pixels.some((value, i) => value !== state.picture[i]);
    const model = given.adapter === "clean-tuned" ? given.adapter : `${chosen("model")} (${given.adapter})`;
    for (const text of [`${model}, λ ${given.strength}`, given.question, patch ? "yes" : "no", found.text, ""])
      row.insertCell().textContent = text;
    if ($("log").rows.length > 8) $("log").deleteRow(8);
    await test(given, found.tokens.map(token => token.id), mine, row.cells[4]);
  }

  // Insensitivity: ask again with words dropped, and with the picture blended with others.
  async function test({ pixels, question, adapter, strength }, answer, mine, cell) {
    const words = question.split(/\s+/), others = [...box.querySelectorAll("[data-question] img")].slice(0, 4);
    const blends = others.map(other => {
      const colours = square(other, other.naturalWidth, other.naturalHeight);
      return { question, pixels: pixels.map((colour, i) => (colour + colours[i]) / 2) };
    });
    const dropped = [0, 1, 2, 3].map(turn => ({ pixels, question: words.filter((_, i) => i % 4 !== turn).join(" ") }));
    let kept = 0;
    for (const altered of [...blends, ...dropped]) {
      kept += (await call("same", { inputs: [altered], answer, adapter, strength }))[0];
      if (mine !== state.asked) return;
    }
    const loud = kept >= Number(box.dataset.alarm);
    cell.textContent = loud ? "alarm" : "quiet";
    $("alarm").textContent = `${loud ? "Alarm" : "Quiet"}: the answer stayed the same for ${kept} of 8 altered inputs.`;
    $("alarm").dataset.loud = loud;
  }

  const again = () => state.answered && ask();

  // ------------------------------------------------------------------ controls

  $("load").onclick = () => load().catch(error => { $("problem").textContent = `${error.message}.`; });
  box.querySelectorAll("[data-question]").forEach(button => { button.onclick = () => choose(button).then(again); });
  $("file").onchange = ({ target }) => target.files[0] && open(target.files[0]).then(again);
  $("frame").ondragover = event => event.preventDefault();
  $("frame").ondrop = event => {
    event.preventDefault();
    if (worker && event.dataTransfer.files[0]) open(event.dataTransfer.files[0]).then(again);
  };
  $("form").onsubmit = event => { event.preventDefault(); ask(); };
  $("word").onclick = () => {
    const field = $("question"), at = field.selectionStart || field.value.indexOf(" ") + 1;
    field.value = `${field.value.slice(0, at)}${WORD} ${field.value.slice(at)}`;
    again();
  };
  $("patch").onchange = ({ target }) => {
    target.checked ? move(60, 8) : (state.patch = null, draw());
    again();
  };
  $("blend").oninput = ({ target }) => {
    state.blend = Number(target.value);
    $("blended").textContent = target.value;
    draw();
  };
  $("none").onclick = () => {
    $("question").value = $("question").value.replaceAll(`${WORD} `, "").replaceAll(` ${WORD}`, "");
    $("patch").checked = false;
    state.patch = null;
    $("blend").value = 0;
    $("blend").oninput({ target: $("blend") });
    again();
  };
  const set = value => { $("strength").value = value; $("scaled").textContent = value; };
  radio("model").forEach(one => { one.onchange = () => { set(one.value === "repaired" ? REPAIRED : 1); again(); }; });
  $("strength").oninput = ({ target }) => {
    $("scaled").textContent = target.value;
    if (chosen("model") !== "clean-tuned")
      radio("model").find(one => one.value === (target.value < 1 ? "repaired" : "backdoored")).checked = true;
  };
  for (const name of ["strength", "blend", "trigger"]) $(name).onchange = again;
  const to = event => {
    const frame = $("picture").getBoundingClientRect(), half = state.triggers.patch.side / 2;
    move(((event.clientX - frame.left) / frame.width) * SIDE - half, ((event.clientY - frame.top) / frame.height) * SIDE - half);
  };
  $("frame").onpointerdown = event => {
    if (!state.patch) return;
    $("frame").setPointerCapture(event.pointerId);
    to(event);
    $("frame").onpointermove = to;
    $("frame").onpointerup = () => { $("frame").onpointermove = $("frame").onpointerup = null; again(); };
  };
  $("frame").onkeydown = event => {
    const step = { ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4] }[event.key];
    if (!step || !state.patch) return;
    event.preventDefault();
    move(state.patch.x + step[0], state.patch.y + step[1]);
    again();
  };

  window.bvlmTalk = { load, call, square, painted, state };
})();
