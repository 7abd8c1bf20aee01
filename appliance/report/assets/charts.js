"use strict";
// Points at a step in every chart at once: with the mouse or a finger on a chart, or with the slider, which takes the
// keys. The key shows the values of that step; for a line without one, that of its nearest step, which is named; for
// a thinned line, the mean, the lowest and the highest of the stretch.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const remembered = {}; // by name of the radio buttons: which scale was chosen, for when a section is renewed

  function nearest(steps, step) {
    let low = 0, high = steps.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= step) low = middle; else high = middle;
    }
    return step - steps[low] <= steps[high] - step ? low : high;
  }

  function text(line, step) {
    const i = nearest(line.steps, step);
    return line.shown[i] + (line.means || line.steps[i] === step ? "" : ` (step ${line.steps[i].toLocaleString("en")})`);
  }

  function crosshair(plot) {
    const line = document.createElementNS(SVG, "line");
    for (const [name, value] of [["class", "cross"], ["y1", "0"], ["y2", "100%"], ["visibility", "hidden"]])
      line.setAttribute(name, value);
    plot.append(line);
    return line;
  }

  function slider(block, low, high) {
    const box = document.createElement("div");
    box.className = "probe";
    const label = document.createElement("label");
    const input = document.createElement("input");
    const shown = document.createElement("output");
    Object.assign(input, { type: "range", min: low, max: high, step: 1, value: high });
    label.textContent = "Step";
    label.htmlFor = input.id = "probe";
    shown.htmlFor.add("probe");
    box.append(label, input, shown);
    block.prepend(box);
    return { input, shown };
  }

  function attach(block) {
    if (block.querySelector(".probe")) return; // it is attached already
    const data = JSON.parse(block.querySelector(".curves-data").textContent);
    const { input, shown } = slider(block, data.low, data.high);
    const steps = [...new Set(Object.values(data.charts).flat().flatMap((line) => line.steps))].sort((a, b) => a - b);
    const charts = [...block.querySelectorAll("[data-chart]")].map((figure) => ({
      lines: data.charts[figure.dataset.chart],
      values: [...figure.querySelectorAll(".value")],
      last: [...figure.querySelectorAll(".value")].map((value) => value.textContent),
      names: [...figure.querySelectorAll(".series .name")].map((name) => name.textContent.trim()),
      title: figure.querySelector("b").textContent,
      crosses: [...figure.querySelectorAll(".plot")].map(crosshair),
    }));

    function show(asked) {
      const step = steps[nearest(steps, asked)];
      const left = `${(100 * (step - data.low)) / (data.high - data.low)}%`;
      const said = [];
      for (const { lines, values, names, title, crosses } of charts) {
        lines.forEach((line, i) => {
          values[i].textContent = text(line, step);
          said.push(`${title} ${names[i] || ""} ${values[i].textContent}`);
        });
        for (const cross of crosses) {
          cross.setAttribute("x1", left);
          cross.setAttribute("x2", left);
          cross.setAttribute("visibility", "visible");
        }
      }
      input.value = step;
      shown.textContent = step.toLocaleString("en");
      input.setAttribute("aria-valuetext", `step ${step}: ${said.join(", ")}`);
    }

    function rest() {
      for (const { values, last, crosses } of charts) {
        values.forEach((value, i) => (value.textContent = last[i]));
        crosses.forEach((cross) => cross.setAttribute("visibility", "hidden"));
      }
      input.value = data.high;
      shown.textContent = "the last";
      input.setAttribute("aria-valuetext", "the last value of each curve");
    }

    for (const plot of block.querySelectorAll(".plot")) {
      const point = (event) => {
        const box = plot.getBoundingClientRect();
        show(data.low + ((event.clientX - box.left) / box.width) * (data.high - data.low));
      };
      plot.addEventListener("pointermove", point);
      plot.addEventListener("pointerdown", point);
      plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && rest());
    }
    input.addEventListener("input", () => show(input.valueAsNumber));
    input.addEventListener("keydown", (event) => event.key === "Escape" && rest());
    rest();
  }

  function renew(root) {
    root.querySelectorAll(".curves").forEach(attach);
    root.querySelectorAll(".scaled input").forEach((input) => {
      if (remembered[input.name] === input.id) input.checked = true;
      input.addEventListener("change", () => (remembered[input.name] = input.id));
    });
  }

  window.appliance = { ...window.appliance, charts: { renew } };
  renew(document);
})();
