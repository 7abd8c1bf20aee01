"use strict";
// Keeps a page as its run is: the server sends the sections that have changed, one event at a time. A section that
// somebody is using (a slider held, text selected, a chart pointed at) waits until it is let go.
(() => {
  const start = JSON.parse(document.getElementById("watch-state").textContent);
  const have = new Map(Object.entries(start.parts)); // section -> hash of what is shown
  const said = document.getElementById("watch-status");
  const main = document.getElementById("main");
  const nav = document.querySelector("header nav");
  const waiting = new Map(); // section -> its new content, while somebody is using it
  const AGAIN = 5000; // milliseconds until a refused stream is asked for again
  let source = null, timer = 0;

  function tell(state, text) {
    if (said.textContent !== text) said.textContent = text;
    said.className = state;
  }

  function isUsed(section) {
    const focused = document.activeElement, selected = getSelection();
    if (section.querySelector(".plot:hover")) return true;
    if (!selected.isCollapsed && section.contains(selected.anchorNode)) return true;
    return focused !== document.body && section.contains(focused) && !focused.closest(".explorer, .tail");
  }

  // What unfolds, with a name that stays when the numbers in it change: "3 answers in between", the second of them.
  function folds(section) {
    const seen = new Map();
    return [...section.querySelectorAll("details")].map((one) => {
      const text = one.querySelector("summary").textContent.replace(/\d+|s\b/g, "");
      seen.set(text, (seen.get(text) || 0) + 1);
      return [one, `${text} ${seen.get(text)}`];
    });
  }

  function put(section, title, html) {
    const open = new Set(folds(section).filter(([one]) => one.open).map(([, name]) => name));
    const log = section.querySelector(".tail");
    const follows = !log || log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    const at = log ? log.scrollTop : 0;
    const hadFocus = log && document.activeElement === log;
    section.replaceChildren();
    if (title) {
      const heading = document.createElement("h2");
      heading.id = `${section.id}-title`;
      heading.textContent = title;
      section.append(heading);
    }
    section.insertAdjacentHTML("beforeend", html);
    for (const [one, name] of folds(section)) if (open.has(name)) one.open = true;
    for (const part of Object.values(window.appliance)) part.renew(section);
    const now = section.querySelector(".tail");
    if (now) now.scrollTop = follows ? now.scrollHeight : at;
    if (now && hadFocus) now.focus({ preventScroll: true });
  }

  function made(id, title, label) {
    const section = document.createElement("section");
    section.id = id;
    if (title) section.setAttribute("aria-labelledby", `${id}-title`);
    else section.setAttribute("aria-label", label);
    return section;
  }

  function link([id, title]) {
    const anchor = document.createElement("a");
    anchor.href = `#${id}`;
    anchor.textContent = title;
    return anchor;
  }

  function take(message) {
    document.title = message.title;
    const wanted = new Set(message.order.map(([id]) => id));
    for (const section of [...main.children]) {
      if (wanted.has(section.id)) continue;
      section.remove();
      have.delete(section.id);
      waiting.delete(section.id);
    }
    let before = null;
    for (const [id, title, label] of message.order) {
      let section = document.getElementById(id);
      if (!section || section.parentElement !== main) section = made(id, title, label);
      if (section.previousElementSibling !== before || section.parentElement !== main) {
        if (before) before.after(section); else main.prepend(section);
      }
      before = section;
      if (!(id in message.parts)) continue;
      have.set(id, message.hashes[id]);
      waiting.set(id, [title, message.parts[id]]);
    }
    const titled = message.order.filter(([, title]) => title);
    if ([...nav.children].map((one) => one.textContent).join("\n") !== titled.map(([, title]) => title).join("\n"))
      nav.replaceChildren(...titled.map(link));
    settle();
  }

  function settle() {
    for (const [id, [title, html]] of waiting) {
      const section = document.getElementById(id);
      if (isUsed(section)) continue;
      waiting.delete(id);
      put(section, title, html);
    }
    if (source && source.readyState === EventSource.OPEN)
      tell("live", waiting.size ? "live; what you are using waits" : "live");
  }

  function connect() {
    clearTimeout(timer);
    if (source || document.hidden) return;
    source = new EventSource(`${start.events}?have=${[...have.values()].join(",")}`);
    source.onopen = () => tell("live", "live");
    source.addEventListener("view", (event) => take(JSON.parse(event.data)));
    source.onerror = () => {
      tell("lost", "connection lost; trying again");
      close();
      timer = setTimeout(connect, AGAIN);
    };
  }

  function close() {
    if (source) source.close();
    source = null;
  }

  // A page that nobody sees takes no connection: a browser has six for one server.
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) return connect();
    clearTimeout(timer);
    close();
  });
  addEventListener("pagehide", close);
  addEventListener("pageshow", connect);
  setInterval(() => waiting.size && settle(), 500);
  const log = document.querySelector(".tail");
  if (log) log.scrollTop = log.scrollHeight;
  tell("", "connecting");
  connect();
})();
