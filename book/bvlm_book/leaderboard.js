"use strict";
// The leaderboard's four tabs, drawn from the JSON that stands in the page; chapters/leaderboard.py writes both.
(() => {
  const board = document.querySelector(".bvlm-board:not([data-drawn])");
  if (!board) return;
  board.dataset.drawn = "yes";
  const data = {};
  for (const [name, part] of Object.entries(JSON.parse(board.querySelector("script").textContent)))
    data[name] = part.data.map(row => Object.fromEntries(part.columns.map((column, i) => [column, row[i]])));

  const FIRST = 100; // lines of the last tab that are drawn at once
  const LISTS = ["model", "threat", "attack", "rate"]; // of the last tab, and of addresses
  const plain = text => String(text ?? "").replaceAll("_", " ");
  const number = (value, digits = 2) => (value == null ? "n/a" : value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1"));
  const percent = rate => `${+(100 * rate).toPrecision(3)} %`;
  const interval = (row, name, digits = 2) =>
    row[name] == null ? "n/a" : `${number(row[name], digits)} [${number(row[`${name}_low`], digits)}, ${number(row[`${name}_high`], digits)}]`;
  const unique = values => [...new Set(values)];

  function make(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes))
      name.startsWith("on") ? made.addEventListener(name.slice(2), value) : made.setAttribute(name, value);
    made.append(...children.filter(child => child != null));
    return made;
  }

  function choice(title, options, change) {
    const select = make("select", {onchange: change, "aria-label": title});
    for (const [value, text] of options) select.append(make("option", {value}, text));
    return [make("label", {}, title, select), select];
  }

  // A table that sorts. columns: {title, value(row), show(row), fold}; value sorts, show is a text or a node. What folds
  // is hidden on a narrow screen, where a click on a line opens it.
  function table(columns, rows, sorted, ranks, most = Infinity) {
    const body = make("tbody"), head = make("tr");
    const titles = ranks ? [{title: "#"}, ...columns] : columns;
    let by = sorted, down = true;
    function draw() {
      const key = columns[by].value;
      const missing = value => value == null || value === "";
      const ordered = [...rows].sort((one, two) => {
        const [a, b] = [key(one), key(two)];
        if (missing(a) || missing(b)) return missing(a) - missing(b);
        return (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
      });
      body.replaceChildren(...ordered.slice(0, most).map((row, i) => line(row, i + 1)));
      [...head.children].forEach((cell, i) => {
        const own = i - (ranks ? 1 : 0);
        if (own >= 0) cell.setAttribute("aria-sort", own !== by ? "none" : down ? "descending" : "ascending");
      });
    }
    function line(row, rank) {
      const cells = columns.map(column => make("td", column.fold ? {class: "fold"} : {}, column.show(row)));
      if (ranks) cells.unshift(make("td", {class: "rank"}, String(rank)));
      return make("tr", {onclick: event => event.target.closest("a") || open(event.currentTarget, row)}, ...cells);
    }
    function open(element, row) {
      if (element.nextElementSibling?.className === "detail") return element.nextElementSibling.remove();
      const list = make("dl");
      for (const column of columns.filter(one => one.fold))
        list.append(make("dt", {}, column.title), make("dd", {}, column.show(row)));
      if (list.children.length) element.after(make("tr", {class: "detail"}, make("td", {colspan: titles.length}, list)));
    }
    titles.forEach((column, i) => {
      const own = i - (ranks ? 1 : 0), attributes = {scope: "col", ...(column.fold ? {class: "fold"} : {})};
      const sort = () => { down = own === by ? !down : columns[own].down ?? true; by = own; draw(); };
      head.append(make("th", attributes, own < 0 ? "#" : make("button", {type: "button", onclick: sort}, column.title)));
    });
    draw();
    return make("table", {}, make("thead", {}, head), body);
  }

  // ---------------------------------------------------------------- attacks

  const address = row => "#" + new URLSearchParams({
    model: row.model, threat: row.threat, attack: row.attack, rate: row.poison_rate, settings: row.settings});
  const runs = row => (row.n_seeds === 1 ? "single run" : `${row.n_seeds} runs`);
  function score(row) {
    if (!row) return "n/a";
    const link = make("a", {href: address(row), title: "the experiments behind this number"}, number(row.value));
    return make("span", {class: row.n_seeds === 1 ? "single" : ""}, link,
      make("small", {}, ` [${number(row.low)}, ${number(row.high)}]`), make("small", {class: "runs"}, ` ${runs(row)}`));
  }

  // The mean over threats with an interval from those of its parts, which are independent.
  function mean(parts) {
    const n = parts.length, value = parts.reduce((sum, row) => sum + row.value, 0) / n;
    const width = end => Math.sqrt(parts.reduce((sum, row) => sum + (row.value - row[end]) ** 2, 0)) / n;
    return {value, low: value - width("low"), high: value + width("high"), n, single: parts.every(row => row.n_seeds === 1)};
  }

  function attacksTab(panel) {
    const rows = data.ranked;
    if (!rows.length) return panel.append("No experiment with usual settings was measured.");
    const dose = row => `${percent(row.poison_rate)}, ${row.passes === 1 ? "one pass" : `${row.passes} passes`}`;
    const [models, model] = choice("Model", unique(rows.map(row => row.model)).map(name => [name, name]), doses);
    const [rates, rate] = choice("Poisoned", [], draw);
    const threats = unique(rows.map(row => row.threat)).map(name => [name, plain(name)]);
    const [which, threat] = choice("Threat", [["", "all threats"], ...threats], draw);
    const [tests, test] = choice("Test of success", ["payload", "published", "strict"].map(name => [name, name]), draw);
    const place = make("div", {class: "scroll"});
    panel.append(make("form", {}, models, rates, which, tests), place);
    doses();

    function doses() {
      const own = rows.filter(row => row.model === model.value), before = rate.value;
      own.sort((one, two) => two.poison_rate - one.poison_rate || one.passes - two.passes);
      rate.replaceChildren(...unique(own.map(dose)).map(text => make("option", {value: text}, text)));
      if ([...rate.options].some(option => option.value === before)) rate.value = before;
      draw();
    }
    function draw() {
      const found = rows.filter(row => row.model === model.value && dose(row) === rate.value && row.test === test.value);
      const one = threat.value && found.filter(row => row.threat === threat.value);
      const made = one ? ofOne(one) : ofAll(found);
      place.replaceChildren(made || "No experiment has these settings.");
    }
    function ofOne(found) {
      const field = (title, name) => ({title, fold: true, value: row => row[name], show: row => number(row[name])});
      return found.length && table([
        {title: "attack", down: false, value: row => row.attack, show: row => row.attack},
        {title: "success", value: row => row.value, show: score},
        {title: "runs", fold: true, value: row => row.n_seeds, show: runs},
        {title: "modality", fold: true, down: false, value: row => row.modality, show: row => row.modality},
        field("clean-tuned model", "control"), field("without the trigger", "false_activation"),
        {title: "poisoned rows", fold: true, value: row => row.n_poisoned, show: row => number(row.n_poisoned, 0)},
      ], found, 1, true);
    }
    function ofAll(found) {
      const lines = unique(found.map(row => row.attack)).map(attack => {
        const own = found.filter(row => row.attack === attack);
        return {attack, ...mean(own), of: Object.fromEntries(own.map(row => [row.threat, row]))};
      });
      const columns = threats.filter(([name]) => found.some(row => row.threat === name)).map(([name, title]) => ({
        title, fold: true, value: line => line.of[name]?.value, show: line => score(line.of[name])}));
      const whole = line => make("span", {}, make("b", {}, number(line.value)),
        make("small", {}, ` [${number(line.low)}, ${number(line.high)}]`),
        make("small", {class: "runs"}, ` ${line.n} of ${columns.length} threats${line.single ? ", single runs" : ""}`));
      return lines.length && table([
        {title: "attack", down: false, value: line => line.attack, show: line => line.attack},
        {title: "mean success", value: line => line.value, show: whole}, ...columns], lines, 1, true);
    }
  }

  // ---------------------------------------------------------------- defences and contributed lines

  function defencesTab(panel) {
    const rows = data.defended;
    if (!rows.length) return panel.append("No defence was measured.");
    const [models, model] = choice("Model", unique(rows.map(row => row.model)).map(name => [name, name]), draw);
    const usual = ["model", "named", "moment", "after", "experiments", "skill", "after_placebo", "skill_placebo"];
    const field = (name, title, fold = true) => ({
      title, fold, value: row => row[name], show: row => number(row[name]), down: name.startsWith("skill")});
    const place = make("div", {class: "scroll"});
    panel.append(make("form", {}, models), place);
    draw();
    function draw() {
      const found = rows.filter(row => row.model === model.value);
      const attacks = Object.keys(rows[0]).filter(name => !usual.includes(name));
      const made = table([
        {title: "defence", down: false, value: row => row.named, show: row => row.named},
        field("after", "success after", false), field("skill", "skill kept", false),
        field("after_placebo", "placebo: success after"), field("skill_placebo", "placebo: skill kept"),
        {title: "tried on", fold: true, value: row => row.experiments, show: row => String(row.experiments)},
        ...attacks.map(name => field(name, name)),
      ], found, 1, true);
      made.querySelectorAll("th button")[1].click(); // the least success first
      place.replaceChildren(made);
    }
  }

  function contributedTab(panel) {
    if (!data.contributed.length) return panel.append("Nobody has contributed a line yet; below is how to.");
    const names = Object.keys(data.contributed[0]), first = ["name", "success", "attack"];
    const columns = [...first, ...names.filter(name => !first.includes(name))].map(name => ({
      title: name, fold: !first.slice(0, 2).includes(name), value: row => row[name], show: row => plain(row[name])}));
    panel.append(make("div", {class: "scroll"}, table(columns, data.contributed, 1, true)));
  }

  // ---------------------------------------------------------------- all experiments

  const chosen = new Map(); // of the last tab: the values of a column that the address or the reader has chosen
  const text = {rate: row => String(row.poison_rate), seed: row => String(row.seed)};
  const of = (row, name) => (text[name] ? text[name](row) : String(row[name] ?? ""));

  function rawTab(panel) {
    const form = make("form", {onsubmit: event => event.preventDefault()}), count = make("p");
    const place = make("div", {class: "scroll raw"});
    let most = FIRST;
    for (const name of LISTS) {
      const values = unique(data.raw.map(row => of(row, name)));
      if (name === "rate") values.sort((one, two) => two - one);
      const shown = values.map(value => [value, name === "rate" ? percent(+value) : plain(value)]);
      const own = chosen.get(name) ?? [], none = own.length > 1 ? `these ${own.length}` : "all";
      const [label, select] = choice(name === "rate" ? "poisoned" : name, [["", none], ...shown], () => { choose(name, select.value); redraw(); });
      select.value = own.length === 1 ? own[0] : "";
      form.append(label);
    }
    const search = make("input", {type: "search", "aria-label": "Search", oninput: () => { choose("search", search.value); draw(); }});
    search.value = chosen.get("search")?.[0] ?? "";
    form.append(make("label", {}, "Search", search), make("button", {type: "button", onclick: () => { chosen.clear(); redraw(); }}, "Clear"));
    panel.replaceChildren(form, count, place);
    draw();

    function choose(name, value) {
      value ? chosen.set(name, [value]) : chosen.delete(name);
      if (name !== "search") for (const other of chosen.keys()) // an address alone asks for these
        if (![...LISTS, "search"].includes(other)) chosen.delete(other);
    }
    function redraw() { rawTab(panel); }
    function draw() {
      const words = (chosen.get("search")?.[0] ?? "").toLowerCase().split(/\s+/).filter(Boolean);
      const found = data.raw.filter(row => [...chosen].every(([name, values]) => name === "search" || values.includes(of(row, name)))
        && words.every(word => Object.values(row).some(value => plain(value).toLowerCase().includes(word) || String(value).toLowerCase().includes(word))));
      const told = [...chosen].filter(([name, values]) => name !== "search" && (values.length > 1 || !LISTS.includes(name)))
        .map(([name, values]) => `; ${plain(name)}: ${values.map(value => plain(value) || "usual").join(" or ")}`);
      count.replaceChildren(`${found.length} of ${data.raw.length} experiments${told.join("")}. `);
      if (found.length > most)
        count.append(`The first ${most} are shown. `, make("button", {type: "button", onclick: () => { most = Infinity; draw(); }}, "Show all"));
      place.replaceChildren(found.length ? table(rawColumns(), found, 1, false, most) : "No experiment is like this.");
    }
  }

  function rawColumns() {
    const words = (name, title = name) => ({title, fold: true, down: false, value: row => row[name], show: row => plain(row[name])});
    const range = (name, title, digits) => ({title, fold: true, value: row => row[name], show: row => interval(row, name, digits)});
    const plainNumber = (name, title, show = row => number(row[name], 0)) => ({title, fold: true, value: row => row[name], show});
    return [
      {...words("attack"), fold: false}, {...range("success", "success"), fold: false}, {...words("threat"), fold: false},
      words("model"), plainNumber("poison_rate", "poisoned", row => percent(row.poison_rate)),
      plainNumber("n_poisoned", "rows"), plainNumber("seed", "seed"), {...words("settings"), show: row => row.settings ?? ""},
      range("false_activation", "without the trigger"), range("success_difference", "strict success minus clean-tuned"),
      range("utility", "utility", 3), range("utility_difference", "utility minus clean-tuned", 3),
      plainNumber("success_n", "judged inputs"), words("modality"), words("dataset", "data"), plainNumber("negatives", "negatives"),
      {...words("status"), show: row => (row.reason ? `${row.status}: ${row.reason}` : row.status)}, {...words("run_id", "name"), show: row => row.run_id},
    ];
  }

  // ---------------------------------------------------------------- tabs and addresses

  const TABS = {attacks: ["Attacks", attacksTab], defences: ["Defences", defencesTab],
    contributed: ["Contributed", contributedTab], experiments: ["All experiments", rawTab]};
  const list = make("div", {role: "tablist"}), panels = {}, drawn = new Set();
  for (const [name, [title]] of Object.entries(TABS)) {
    list.append(make("button", {type: "button", role: "tab", id: `tab-${name}`, onclick: () => select(name)}, title));
    panels[name] = make("div", {role: "tabpanel", "aria-labelledby": `tab-${name}`, hidden: ""});
  }
  board.replaceChildren(list, ...Object.values(panels));

  function select(name, again = false) {
    if (again || !drawn.has(name)) { panels[name].replaceChildren(); TABS[name][1](panels[name]); }
    drawn.add(name);
    for (const other of Object.keys(TABS)) {
      panels[other].hidden = other !== name;
      list.querySelector(`#tab-${other}`).setAttribute("aria-selected", other === name);
    }
  }
  // #model=tiny-llava&threat=jailbreak&attack=SIG&attack=MABA&rate=0.1&settings= chooses experiments by their columns, a
  // name given twice either value; #tab=defences chooses a tab.
  function follow() {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (asked.has("tab") && TABS[asked.get("tab")]) return select(asked.get("tab"));
    const names = ["rate", ...Object.keys(data.raw[0])].filter(name => asked.has(name));
    if (!names.length) return false;
    chosen.clear();
    for (const name of names) chosen.set(name, asked.getAll(name).map(value => (name === "rate" ? String(+value) : value)));
    select("experiments", true);
    board.scrollIntoView();
    return true;
  }
  select("attacks");
  follow();
  window.addEventListener("hashchange", follow);
})();
