"use strict";
// Asks the run's model, if a server of `appliance serve` has it. Answers come as events of a POST, which EventSource
// cannot send. Whatever anybody wrote becomes text, never markup.
(() => {
  const path = JSON.parse(document.getElementById("watch-state").textContent).chat;
  const SOON = 3000, LATER = 20000; // milliseconds until the server is asked again whether it is there
  const WHY = { length: "cut off", stop: "" };
  let timer = 0;

  function element(name, className, text) {
    const made = document.createElement(name);
    made.className = className;
    if (text) made.textContent = text;
    return made;
  }

  function bind(box) {
    const state = box.querySelector(".chat-state"), command = box.querySelector(".chat-command");
    const log = box.querySelector(".chat-log"), form = box.querySelector("form");
    const field = form.querySelector("textarea"), [ask, stop, fresh] = form.querySelectorAll("button");
    let turns = [], running = null;

    async function look() {
      clearTimeout(timer);
      if (!box.isConnected) return;
      if (!document.hidden && !running) {
        try {
          const answer = await fetch(path);
          show(answer.ok ? await answer.json() : { is_ready: false, said: "This page's server does not answer.", command: "" });
        } catch {
          show({ is_ready: false, said: "This page's server does not answer.", command: "" });
        }
      }
      timer = setTimeout(look, form.hidden ? SOON : LATER);
    }

    function show(found) {
      const said = found.is_ready ? "" : found.said;
      if (state.textContent !== said) state.textContent = said;
      state.hidden = found.is_ready;
      command.textContent = found.command;
      command.hidden = !found.command;
      if (!found.is_ready && form.contains(document.activeElement)) log.focus();
      form.hidden = !found.is_ready;
      log.hidden = !log.childElementCount;
    }

    function turn(role, text) {
      const one = element("div", `turn ${role}`);
      one.append(element("span", "who", role === "user" ? "You" : "Model"));
      const said = element("bdi", "said", text);
      one.append(said);
      log.append(one);
      log.hidden = false;
      log.scrollTop = log.scrollHeight;
      return [one, said];
    }

    function note(one, text, style = "") {
      if (text) one.append(element("span", `note ${style}`, text));
    }

    function busy(is) {
      ask.hidden = is;
      stop.hidden = !is;
      fresh.hidden = is || !turns.length;
      log.setAttribute("aria-busy", String(is));
    }

    async function send() {
      const question = field.value.trim();
      if (!question || running) return;
      turns.push({ role: "user", content: question });
      field.value = "";
      turn("user", question);
      const [one, said] = turn("model", "");
      running = new AbortController();
      busy(true);
      let text = "", ended = null;
      try {
        const body = JSON.stringify({ messages: turns });
        const headers = { "content-type": "application/json" };
        const answer = await fetch(path, { method: "POST", body, headers, signal: running.signal });
        if (!answer.ok) throw new Error((await answer.text()).trim() || `status ${answer.status}`);
        for await (const [name, data] of events(answer.body)) {
          if (name === "error") throw new Error(data.said);
          if (name === "end") ended = data;
          if (name !== "piece") continue;
          const follows = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
          said.textContent = text += data.text;
          if (follows) log.scrollTop = log.scrollHeight;
        }
        if (!ended) throw new Error("the answer broke off");
        note(one, WHY[ended.reason] ?? ended.reason);
        if (ended.left_out) note(one, "asked alone: this model was trained on single questions");
        if (!text) note(one, "the model said nothing");
      } catch (error) {
        if (error.name === "AbortError") note(one, "stopped");
        else note(one, error.message, "bad");
      }
      // a question without an answer is not part of the conversation
      if (text) turns.push({ role: "assistant", content: text }); else turns.pop();
      running = null;
      busy(false);
      log.scrollTop = log.scrollHeight;
      field.focus();
      look();
    }

    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // Hangul may be half written
      event.preventDefault();
      send();
    });
    stop.addEventListener("click", () => running && running.abort());
    fresh.addEventListener("click", () => {
      turns = [];
      log.replaceChildren();
      log.hidden = true;
      busy(false);
      field.focus();
    });
    state.textContent = "looking for a server";
    document.addEventListener("visibilitychange", () => document.hidden || look());
    look();
  }

  // The events of a stream: [name, data] each.
  async function* events(stream) {
    const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "", name = "";
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines) {
          if (line.startsWith("event: ")) name = line.slice(7).trim();
          else if (line.startsWith("data: ")) yield [name, JSON.parse(line.slice(6))];
        }
      }
    } finally {
      reader.cancel().catch(() => {});
    }
  }

  function renew(root) {
    root.querySelectorAll("[data-chat]").forEach(bind);
  }

  window.appliance = { ...window.appliance, chat: { renew } };
  renew(document);
})();
