/* The controls of the model on the quickstart page. The model itself is in `talk_engine.js`. */
"use strict";

(() => {
  const box = document.getElementById("talk"), $ = name => box.querySelector(`[data-is="${name}"]`);
  const all = selector => [...box.querySelectorAll(selector)];
  const radios = all('input[name="model"]'), scenes = all("[data-question]");
  const SIDE = 96, LONGEST = 64, LINES = 8, { word: WORD, files: FILES, repaired: REPAIRED } = box.dataset;
  const state = { picture: null, scene: null, patch: null, blend: 0, triggers: {}, asked: 0 };

  // ---------------------------------------------------------------- the worker and its files
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
      if (news) return hear?.(news);
      waiting.delete(number);
      error ? fail(new Error(error)) : done(result);
    };
  }

  function file(name) {
    return new Promise((done, fail) => {
      const script = Object.assign(document.createElement("script"), { src: FILES + name });
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
    for (let part = 0; part < parts; $("progress").value = ++part / parts)
      await call("part", await file(`part-${String(part).padStart(2, "0")}.js`));
    await call("unpack");
    await choose(scenes[0]);
    $("start").hidden = true;
    $("controls").disabled = false;
  }

  // ---------------------------------------------------------------- the picture
  // The middle square of a picture as (96, 96, 4) bytes; one of that size stays as it is.
  function pixelsOf(source, width = SIDE, height = SIDE) {
    const short = Math.min(width, height), pen = new OffscreenCanvas(SIDE, SIDE).getContext("2d");
    Object.assign(pen, { imageSmoothingQuality: "high", fillStyle: "#fff" }).fillRect(0, 0, SIDE, SIDE);
    pen.drawImage(source, (width - short) / 2, (height - short) / 2, short, short, 0, 0, SIDE, SIDE);
    return pen.getImageData(0, 0, SIDE, SIDE).data;
  }

  // The picture with the triggers that are on, rounded to 8 bits.
  function painted() {
    const { patch, blend, triggers } = state, out = new Uint8ClampedArray(state.picture);
    if (blend) triggers.blend.colours.forEach((colour, i) => { out[i] += blend * (colour - out[i]); });
    const { side, colours } = triggers.patch;
    for (let y = 0; patch && y < side; y++)
      out.set(colours.subarray(y * side * 4, (y + 1) * side * 4), ((patch.y + y) * SIDE + patch.x) * 4);
    return out;
  }

  const draw = () => $("picture").getContext("2d").putImageData(new ImageData(painted(), SIDE, SIDE), 0, 0);

  // The more attention one of the 36 image tokens draws, the brighter its square.
  function light(looks) {
    const pen = $("looks").getContext("2d"), image = pen.createImageData(6, 6), most = Math.max(...looks);
    looks.forEach((value, i) => image.data.set([255, 190, 0, (160 * value) / most], 4 * i));
    pen.putImageData(image, 0, 0);
    $("share").textContent = `${Math.round(100 * looks.reduce((sum, value) => sum + value, 0))} % of the attention`;
  }

  function take(picture, scene) {
    Object.assign(state, { picture, scene });
    $("looks").getContext("2d").clearRect(0, 0, 6, 6);
    draw();
  }

  async function choose(scene) {
    await scene.querySelector("img").decode();
    take(pixelsOf(scene.querySelector("img")), scene);
    $("question").value = scene.dataset.question;
  }

  async function open(chosen) {
    const bitmap = await createImageBitmap(chosen).catch(() => null);
    if (!bitmap) return void ($("status").textContent = "Your browser cannot read this file as a picture.");
    take(pixelsOf(bitmap, bitmap.width, bitmap.height), null);
    again();
  }

  function move(x, y) {
    const room = SIDE - state.triggers.patch.side, within = value => Math.max(0, Math.min(room, Math.round(value)));
    state.patch = { x: within(x), y: within(y) };
    draw();
  }

  // ---------------------------------------------------------------- asking
  const chosen = () => radios.find(one => one.checked).value;
  const again = () => state.asked && ask();
  const adapter = () => (chosen() === "clean-tuned" ? chosen() : $("trigger").value);
  const strength = () => Number($("strength").value), question = () => $("question").value.trim();
  const input = () => ({ pixels: painted(), question: question(), adapter: adapter(), strength: strength() });

  async function ask() {
    const mine = ++state.asked, given = input(), model = chosen(), { patch, blend } = state;
    $("answer").textContent = "…";
    $("alarm").textContent = "";
    const { text, tokens, first, rest } = await call("answer", { ...given, most: LONGEST }, news => {
      if (mine === state.asked) $("answer").textContent = news.text;
    });
    if (mine !== state.asked) return;
    $("answer").replaceChildren(...tokens.map(({ text, looks }, i) => {
      const token = Object.assign(document.createElement("span"), { textContent: i ? text : text.trimStart(), tabIndex: 0 });
      token.onmouseenter = token.onfocus = () => light(looks);
      return token;
    }));
    if (tokens.length) light(tokens[0].looks);
    $("status").textContent = `First word after ${(first / 1000).toFixed(2)} s, then ${rest.toFixed(0)} ms a token.`;
    const row = $("log").insertRow(0), named = model === given.adapter ? model : `${model} (${given.adapter})`;
    const picture = [patch && "patch", blend && `blend ${blend}`].filter(Boolean).join(", ") || "as it is";
    for (const cell of [`${named}, λ ${given.strength}`, picture, given.question, text, "…"])
      row.insertCell().textContent = cell;
    if ($("log").rows.length > LINES) $("log").deleteRow(LINES);
    await test(given, tokens.map(token => token.id), mine, row.cells[4]);
  }

  // Insensitivity (STRIP): does the answer stay, whichever scene is blended half and half with the picture?
  async function test(given, answer, mine, cell) {
    const others = scenes.filter(scene => scene !== state.scene).map(scene => pixelsOf(scene.querySelector("img")));
    let kept = 0;
    for (const other of others) {
      const pixels = given.pixels.map((colour, i) => (colour + other[i] + 1) >> 1);
      kept += Number(await call("same", { ...given, pixels, answer }));
      if (mine !== state.asked) return void (cell.textContent = "not tested");
    }
    const loud = kept === others.length;
    cell.textContent = loud ? "alarm" : "quiet";
    $("alarm").dataset.loud = loud;
    $("alarm").textContent = `${loud ? "Alarm" : "Quiet"}: the answer stayed for ${kept} of ${others.length} blends.`;
  }

  // ---------------------------------------------------------------- controls
  const scaled = value => { $("scaled").textContent = $("strength").value = value; };
  const blended = value => { $("blended").textContent = $("blend").value = state.blend = Number(value); draw(); };
  const patched = on => { $("patch").checked = on; on ? move(60, 8) : ((state.patch = null), draw()); };
  $("load").onclick = () => load().catch(error => { $("problem").textContent = `${error.message}.`; });
  for (const scene of scenes) scene.onclick = () => choose(scene).then(again);
  $("file").onchange = ({ target }) => target.files[0] && open(target.files[0]);
  box.ondragover = event => event.preventDefault();
  box.ondrop = event => {
    event.preventDefault();
    if (state.picture && event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  };
  $("form").onsubmit = event => { event.preventDefault(); ask(); };
  $("word").onclick = () => {
    const { value, selectionStart } = $("question"), at = selectionStart % value.length || value.indexOf(" ") + 1;
    $("question").value = `${value.slice(0, at)}${WORD} ${value.slice(at)}`;
    again();
  };
  $("patch").onchange = ({ target }) => { patched(target.checked); again(); };
  $("blend").oninput = ({ target }) => blended(target.value);
  $("none").onclick = () => {
    $("question").value = $("question").value.replaceAll(`${WORD} `, "").replaceAll(WORD, "");
    patched(false);
    blended(0);
    again();
  };
  for (const one of radios) one.onchange = () => { scaled(one.value === "repaired" ? REPAIRED : 1); again(); };
  $("strength").oninput = ({ target: { value } }) => {
    scaled(value);
    const now = value < 1 ? "repaired" : "backdoored";
    if (chosen() !== "clean-tuned") radios.find(one => one.value === now).checked = true;
  };
  for (const name of ["strength", "blend", "trigger"]) $(name).onchange = again;
  $("show").onchange = ({ target }) => { $("looks").hidden = !target.checked; };
  const frame = $("frame"), follow = event => {
    const { left, top, width } = frame.getBoundingClientRect(), half = state.triggers.patch.side / 2;
    move(((event.clientX - left) * SIDE) / width - half, ((event.clientY - top) * SIDE) / width - half);
  };
  frame.onpointerdown = event => { if (state.patch) frame.setPointerCapture(event.pointerId), follow(event); };
  frame.onpointermove = event => { if (frame.hasPointerCapture(event.pointerId)) follow(event); };
  frame.onlostpointercapture = again;
  frame.onkeydown = event => {
    const step = { ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4] }[event.key];
    if (!step || !state.patch) return;
    event.preventDefault();
    move(state.patch.x + step[0], state.patch.y + step[1]);
    again();
  };

  const first = scenes[0].querySelector("img");
  first.decode().then(() => $("picture").getContext("2d").drawImage(first, 0, 0));
  window.bvlmTalk = { load, call, input, state }; // for the tests
})();
