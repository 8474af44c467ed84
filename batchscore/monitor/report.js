"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const detail = document.getElementById("detail");
  const rows = [...document.querySelectorAll("#heat tbody tr")].map((row) => [...row.querySelectorAll("button")]);
  let reference = "training";
  let chosen = null;
  let focused = [0, 0];

  // Text goes in as text alone: names of columns and categories are whatever the data holds.
  const element = (name, text = "", kind = "") => {
    const made = document.createElement(name);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const table = (heads, kind) => {
    const made = element("table", "", kind);
    const head = made.createTHead().insertRow();
    for (const text of heads) {
      const cell = element("th", text);
      cell.scope = "col";
      head.append(cell);
    }
    made.append(document.createElement("tbody"));
    return made;
  };
  const line = (into, head, ...cells) => {
    const row = into.tBodies[0].insertRow();
    const first = element("th", head);
    first.scope = "row";
    row.append(first, ...cells);
  };
  const cellOf = (i, j) => (data.lines[i].cells[reference] || [])[j] || null;
  const share = (part, whole) => (whole ? part / whole : 0);
  const percent = (value) => `${(100 * value).toFixed(1)} %`;

  const paint = () => {
    rows.forEach((row, i) => row.forEach((button, j) => {
      const cell = cellOf(i, j);
      button.className = cell ? cell[0] : "";
      button.textContent = cell ? data.states[cell[0]][0] : "";
      button.setAttribute("aria-label", cell ? data.states[cell[0]][1] : "not compared");
    }));
    if (chosen) show(...chosen);
  };

  const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4 });
  // Dates do not break.
  const heading = (...parts) => {
    const made = element("h3");
    parts.forEach((part) => made.append(/^\d{4}-/.test(part) ? element("span", part, "t") : part));
    return made;
  };

  // What a cell is compared with: its name, and the counts and figures of the training rows or of the runs that are on
  // this page; without counts where none of them is.
  const otherOf = (one, j) => {
    const version = one.shape[j];
    if (reference === "training") {
      const none = version === null;
      return { name: "training", counts: none ? null : one.shapes[version].training, figures: none ? null : one.trained[version] };
    }
    const places = ((data.others[reference] || [])[j] || []).filter((k) => one.shape[k] === version);
    const counted = places.map((k) => one.counts[k]).filter((counts) => counts);
    const known = places.map((k) => one.summaries[k]).filter((figures) => figures);
    const name = `${reference.replace("_", " ")}${places.length > 1 ? `, ${places.length} runs` : ""}`;
    const total = known.reduce((sum, figures) => sum + figures[0], 0);
    return {
      name,
      counts: counted.length ? counted[0].map((_, bar) => counted.reduce((sum, counts) => sum + counts[bar], 0)) : null,
      figures: total
        ? [total, known.reduce((sum, [count, mean]) => sum + count * mean, 0) / total,
          Math.min(...known.map((figures) => figures[2])), Math.max(...known.map((figures) => figures[3]))]
        : null,
    };
  };

  const metricsOf = (cell, before) => {
    const made = table(["metric", "value", "counts from"]);
    data.metrics.forEach((name, k) => {
      const value = cell[k + 1];
      if (value === undefined || value === null) return;
      // The difference of two shares says little without them.
      const was = (before || {})[k];
      const told = was === undefined ? String(value) : `${percent(value + was)}, was ${percent(was)}`;
      const counts = was === undefined ? String(data.bands[k]) : `± ${percent(data.bands[k])}`;
      line(made, name, element("td", told, "n"), element("td", counts, "n"));
    });
    return made;
  };

  const figuresOf = (one, j, other) => {
    if (!one.summaries[j]) return "";
    const made = table(["", other.name, data.times[j]]);
    ["mean", "smallest", "largest"].forEach((name, k) => {
      const pair = [other.figures, one.summaries[j]];
      line(made, name, ...pair.map((figures) => element("td", figures ? number(figures[k + 1]) : "", "n")));
    });
    return made;
  };

  const barsOf = (one, j, other) => {
    const shape = one.shape[j] === null ? null : one.shapes[one.shape[j]];
    if (!shape || !one.counts[j]) return element("p", "No distribution is shown: the column is private or a calendar, or its profile or its version is gone.", "note");
    const counts = one.counts[j];
    if (!other.counts) return element("p", `No distribution is shown: what ${other.name} means of it is not on this page.`, "note");
    const [before, now] = [other.counts, counts].map((list) => list.reduce((a, b) => a + b, 0));
    const most = Math.max(...shape.names.map((_, k) => Math.max(share(other.counts[k], before), share(counts[k], now))));
    const made = table(["value", other.name, data.times[j], "share of rows"], "bars");
    shape.names.forEach((name, k) => {
      const shares = [share(other.counts[k], before), share(counts[k], now)];
      const bars = element("td");
      for (const value of shares) {
        const bar = element("i");
        bar.style.width = `${(100 * share(value, most)).toFixed(1)}%`;
        bars.append(bar);
      }
      line(made, name, ...shares.map((value) => element("td", percent(value), "n")), bars);
    });
    const key = element("p", "", "note key");
    for (const [name, rows, kind] of [[other.name, before, "training"], [data.times[j], now, "run"]]) {
      const item = element("span", "", "t");
      item.append(element("i", "", kind), `${name}, ${rows.toLocaleString("en")} rows`);
      key.append(item, " ");
    }
    const both = document.createDocumentFragment();
    both.append(key, made);
    return both;
  };

  const show = (i, j) => {
    if (chosen) rows[chosen[0]][chosen[1]].removeAttribute("aria-pressed");
    chosen = [i, j];
    rows[i][j].setAttribute("aria-pressed", "true");
    const one = data.lines[i];
    const cell = cellOf(i, j);
    const against = reference.replace("_", " ");
    const state = cell ? data.states[cell[0]][1] : "not compared";
    const columns = element("div", "", "columns");
    const left = element("div", "", "wide");
    const right = element("div", "", "wide");
    const other = otherOf(one, j);
    if (cell) left.append(metricsOf(cell, (one.before[reference] || [])[j]));
    left.append(figuresOf(one, j, other));
    if (one.importance !== null) left.append(element("p", `Importance: ${percent(one.importance)} of the most important column's.`, "note"));
    right.append(barsOf(one, j, other));
    columns.append(left, right);
    detail.replaceChildren(heading(`${one.name}, `, data.times[j], `, against ${against}: ${state}`), columns);
  };

  const focus = (i, j) => {
    rows[focused[0]][focused[1]].tabIndex = -1;
    focused = [i, j];
    rows[i][j].tabIndex = 0;
    rows[i][j].focus();
  };
  const within = (value, end) => Math.min(Math.max(value, 0), end - 1);

  const map = document.getElementById("heat");
  const placeOf = (button) => {
    const i = rows.findIndex((row) => row.includes(button));
    return [i, rows[i].indexOf(button)];
  };
  map.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    focus(...placeOf(button));
    show(...focused);
  });
  map.addEventListener("keydown", (event) => {
    const [i, j] = focused;
    const to = {
      ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1], ArrowUp: [i - 1, j], ArrowDown: [i + 1, j],
      Home: [i, 0], End: [i, data.times.length - 1],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    focus(within(to[0], rows.length), within(to[1], data.times.length));
  });
  document.getElementById("references").addEventListener("change", (event) => {
    reference = event.target.value;
    paint();
  });

  // What moved most of the last interval is open from the start, on paper too.
  const last = data.times.length - 1;
  const first = ["far", "moved"].map((state) => rows.findIndex((_, i) => (cellOf(i, last) || [])[0] === state)).find((i) => i >= 0);
  show(first === undefined ? 0 : first, last);
  focused = [...chosen];
  rows[focused[0]][focused[1]].tabIndex = 0;
})();
