"use strict";
// The search page: ranks the sections of the book for a question and shows where its words stand. Sphinx's own script
// reads the address and calls Search.query; bvlm_search writes the texts: page -> [[anchor, title, text], ...].
(() => {
  const SYNONYMS = [
    ["defence", "defense", "defend", "protect", "stop"],
    ["remove", "clean", "repair", "mend", "purify", "removal"],
    ["cite", "citation", "citing", "bibtex"],
    ["detect", "find", "audit", "check", "alarm"],
    ["color", "colour"], ["picture", "image", "photo"], ["percent", "%"],
  ];
  const IGNORED = "how what why which who when do does can could should i my me your you we our is are am have has get any".split(" ");
  const AS_SYNONYM = 0.4; // what a synonym counts beside the word itself
  const MOST = 25, AROUND = 14; // pages that are shown, and words on each side of what was found

  const stemmer = new Stemmer(), stems = new Map();
  function stem(word) {
    const lower = word.toLowerCase();
    if (!stems.has(lower)) stems.set(lower, stemmer.stemWord(lower));
    return stems.get(lower);
  }
  const wordsOf = text => text.match(/[\p{L}\p{N}%]+/gu) ?? [];

  // A question as a list of terms: stem -> what it counts.
  function terms(question) {
    const all = wordsOf(question), kept = all.filter(word => !stopwords.includes(word.toLowerCase()) && !IGNORED.includes(word.toLowerCase()));
    return (kept.length ? kept : all).map(word => {
      const group = SYNONYMS.find(one => one.some(other => stem(other) === stem(word))) ?? [];
      return new Map([...group.map(other => [stem(other), AS_SYNONYM]), [stem(word), 1]]);
    });
  }

  function count(text) {
    const counts = new Map();
    for (const word of wordsOf(text)) counts.set(stem(word), (counts.get(stem(word)) ?? 0) + 1);
    return counts;
  }

  let sections;
  function read() {
    sections ??= Object.entries(bvlmTexts).flatMap(([page, parts]) => parts.map(([anchor, title, text], i) => ({
      page, anchor: i ? `#${anchor}` : "", title, text, pageTitle: parts[0][1],
      inText: count(text), inTitle: count(title), inPage: count(parts[0][1])})));
    return sections;
  }

  function rank(question) {
    const asked = terms(question), all = read();
    const weight = asked.map(term => {
      const having = all.filter(section => [...term.keys()].some(one => section.inText.has(one) || section.inTitle.has(one)));
      return Math.log(1 + all.length / (1 + having.length));
    });
    const best = new Map();
    for (const section of all) {
      let score = 0, matched = 0;
      asked.forEach((term, i) => {
        let own = 0;
        for (const [one, share] of term) {
          const times = section.inText.get(one) ?? 0;
          const found = times / (times + 1.5) + 2 * section.inTitle.has(one) + section.inPage.has(one);
          own = Math.max(own, share * found);
        }
        score += weight[i] * own;
        matched += own > 0;
      });
      score *= (matched / asked.length) ** 2;
      if (score > (best.get(section.page)?.score ?? 0)) best.set(section.page, {section, score});
    }
    return [...best.values()].sort((one, two) => two.score - one.score).slice(0, MOST).map(found => found.section);
  }

  // Around the place with most of the terms, with the words marked.
  function snippet(text, question) {
    const asked = terms(question), tokens = text.split(/\s+/);
    const hits = tokens.map(token => {
      const own = wordsOf(token).map(stem);
      return asked.findIndex(term => own.some(one => term.has(one)));
    });
    let at = 0, most = 0;
    hits.forEach((hit, i) => {
      if (hit < 0) return;
      const near = hits.slice(i, i + 2 * AROUND).filter(one => one >= 0);
      const worth = 10 * new Set(near).size + near.length;
      if (worth > most) [at, most] = [i, worth];
    });
    const from = Math.max(0, at - AROUND / 2), to = Math.min(tokens.length, from + 3 * AROUND);
    const shown = document.createElement("p");
    shown.className = "context";
    if (from) shown.append("… ");
    for (let i = from; i < to; i++) {
      if (hits[i] >= 0) shown.append(Object.assign(document.createElement("mark"), {textContent: tokens[i]}));
      else shown.append(tokens[i]);
      shown.append(" ");
    }
    if (to < tokens.length) shown.append("…");
    return shown;
  }

  Search.query = question => {
    const found = rank(question);
    Search.stopPulse();
    Search.title.innerText = "Search results";
    Search.status.innerText = found.length ? `${found.length} page${found.length > 1 ? "s" : ""}` : "No page has these words.";
    for (const section of found) {
      const item = document.createElement("li"), link = document.createElement("a");
      link.href = `${section.page}.html${section.anchor}`;
      link.textContent = section.anchor ? `${section.pageTitle}: ${section.title}` : section.title;
      item.append(link, snippet(section.text, question));
      Search.output.append(item);
    }
  };
})();
