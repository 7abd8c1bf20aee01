"use strict";
// Filters, search and keys for the tables of answers. What is chosen survives `renew`, which a page that is watched
// calls with the element whose content it has replaced.
(() => {
  const chosen = new Map(); // id of a table -> {query, kinds, row}
  const tables = new Map(); // id -> what `bind` found in it
  const ENDLESS = "did not stop";
  let focused = null; // {id, what}: what had the focus when its element was replaced

  // Capitals first: that is how ß becomes ss, as in case folding.
  const folded = (text) => text.normalize("NFC").toUpperCase().toLowerCase();

  function textNodes(row) {
    const found = [];
    const walker = document.createTreeWalker(row, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) if (!walker.currentNode.parentElement.closest("del, i, summary")) found.push(walker.currentNode);
    return found;
  }

  // What is searched: all cells as they are read, without the words that are missing in them.
  function textOf(row) {
    const cells = [...row.cells].map((cell) => textNodes(cell).map((node) => node.data).join(""));
    return folded(cells.join("\n"));
  }

  function bind(root) {
    const state = chosen.get(root.id) || { query: "", kinds: new Set(), row: null };
    chosen.set(root.id, state);
    const it = {
      root, state,
      rows: [...root.querySelectorAll("tbody > tr")],
      input: root.querySelector("input[type=search]"),
      buttons: [...root.querySelectorAll("button[data-k]")],
      status: root.querySelector("[role=status]"),
      texts: null,
    };
    it.all = it.status.textContent;
    it.input.value = state.query;
    it.input.addEventListener("input", () => { state.query = it.input.value; show(it); });
    it.buttons.forEach((button) => button.addEventListener("click", () => {
      const kind = button.dataset.k;
      if (!state.kinds.delete(kind)) state.kinds.add(kind);
      show(it);
    }));
    root.addEventListener("focusin", (event) => { focused = { id: root.id, what: nameOf(event.target) }; });
    root.addEventListener("focusout", () => setTimeout(() => {
      if (root.isConnected && !root.contains(document.activeElement) && document.hasFocus()) focused = null;
    }));
    root.querySelector(".tools").hidden = false;
    tables.set(root.id, it);
    show(it);
    if (focused && focused.id === root.id && document.activeElement === document.body) {
      const back = find(it, focused.what);
      if (back) back.focus({ preventScroll: true });
    }
  }

  const nameOf = (element) => element.dataset.k && element.type === "button" ? `k:${element.dataset.k}`
    : element.type === "search" ? "search" : (element.closest("tr") || {}).id || "";
  const find = (it, what) => what === "search" ? it.input
    : what.startsWith("k:") ? it.buttons.find((one) => `k:${one.dataset.k}` === what)
    : go(it, it.rows.find((one) => one.id === what), false);

  function show(it) {
    const { query, kinds } = it.state;
    const words = folded(query).split(/\s+/).filter(Boolean);
    if (words.length && !it.texts) it.texts = it.rows.map(textOf);
    const wanted = new Set([...kinds].filter((kind) => kind !== ENDLESS));
    const visible = it.rows.filter((row, i) => {
      const [kind, endless] = row.dataset.k.split("|");
      const shown = (!wanted.size || wanted.has(kind)) && (!kinds.has(ENDLESS) || endless)
        && words.every((word) => it.texts[i].includes(word));
      row.hidden = !shown;
      return shown;
    });
    it.buttons.forEach((one) => one.setAttribute("aria-pressed", String(kinds.has(one.dataset.k))));
    const everything = !kinds.size && !words.length;
    const said = everything ? it.all : `${visible.length} of ${it.rows.length} rows.`;
    if (it.status.textContent !== said) it.status.textContent = said;
    it.rows.forEach((row) => { if (row.tabIndex === 0) row.tabIndex = -1; });
    const current = visible.find((row) => row.id === it.state.row) || visible[0];
    if (current) current.tabIndex = 0;
    mark(it, visible, words);
  }

  // The words that were found, without touching the text itself. Where a browser cannot, they are found all the same.
  function mark(it, visible, words) {
    if (!window.Highlight) return;
    const ranges = [];
    for (const row of words.length ? visible.slice(0, 300) : []) {
      for (const node of textNodes(row)) {
        const text = folded(node.data);
        if (text.length !== node.data.length) continue;
        for (const word of words) {
          for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + word.length)) {
            const range = new Range();
            range.setStart(node, at);
            range.setEnd(node, at + word.length);
            ranges.push(range);
            const fold = node.parentElement.closest("details");
            if (fold) fold.open = true;
          }
        }
      }
    }
    it.ranges = ranges;
    CSS.highlights.set("found", new Highlight(...[...tables.values()].flatMap((one) => one.ranges || [])));
  }

  function go(it, row, scrolls = true) {
    if (!row) return null;
    it.rows.forEach((one) => { if (one.tabIndex === 0) one.tabIndex = -1; });
    row.tabIndex = 0;
    it.state.row = row.id;
    row.focus({ preventScroll: true });
    if (scrolls) row.scrollIntoView({ block: "nearest" });
    return row;
  }

  function step(it, by) {
    const visible = it.rows.filter((row) => !row.hidden);
    const at = visible.indexOf(document.activeElement.closest("tr"));
    const current = visible.findIndex((row) => row.id === it.state.row);
    const next = at >= 0 ? at + by : Math.max(current, 0);
    go(it, visible[Math.min(Math.max(next, 0), visible.length - 1)]);
  }

  // The table that has the focus, else the first that is seen, else the first.
  function nearest() {
    const all = [...tables.values()].filter((it) => it.root.isConnected);
    const seen = (it) => { const box = it.root.getBoundingClientRect(); return box.bottom > 0 && box.top < innerHeight; };
    return all.find((it) => it.root.contains(document.activeElement)) || all.find(seen) || all[0];
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const it = nearest();
    if (!it) return;
    const typing = event.target.closest("input, textarea, select, [contenteditable]");
    const inRow = Boolean(event.target.closest(".answers tbody tr"));
    if (event.key === "Escape" && it.root.contains(event.target)) {
      if (it.state.query) it.state.query = it.input.value = "";
      else it.state.kinds.clear();
      show(it);
    } else if (event.key === "/" && !typing) {
      it.input.focus();
      it.input.select();
    } else if ((event.key === "j" && !typing) || (event.key === "ArrowDown" && (inRow || event.target === it.input))) {
      step(it, 1);
    } else if ((event.key === "k" && !typing) || (event.key === "ArrowUp" && inRow)) {
      step(it, -1);
    } else {
      return;
    }
    event.preventDefault();
  });

  function renew(element) {
    for (const [id, it] of tables) if (!it.root.isConnected) tables.delete(id);
    element.querySelectorAll(".explorer").forEach(bind);
  }

  window.appliance = Object.assign(window.appliance || {}, { answers: { renew } });
  renew(document);
})();
