"use strict";
(() => {
  const tip = document.getElementById("tip");
  const body = document.getElementById("tip-text");
  const close = () => {
    tip.hidden = true;
    document.querySelectorAll(".on").forEach((e) => e.classList.remove("on"));
  };
  const show = (mark) => {
    const rows = mark.dataset.tip.split("\n").map((line) => line.split("\t"));
    const [head, ...facts] = rows;
    const title = document.createElement("strong");
    title.textContent = head.join(" ");
    const list = document.createElement("dl");
    list.className = "facts";
    for (const [name, value] of facts) {
      const dt = document.createElement("dt");
      const dd = document.createElement("dd");
      dt.textContent = name;
      dd.textContent = value;
      list.append(dt, dd);
    }
    close();
    body.replaceChildren(title, list);
    mark.classList.add("on");
    tip.hidden = false;
  };
  const marked = (event) => event.target.closest && event.target.closest("[data-tip]");
  for (const kind of ["pointerover", "focusin", "click"])
    document.addEventListener(kind, (event) => {
      const mark = marked(event);
      if (mark) show(mark);
      else if (kind === "click" && !tip.contains(event.target)) close();
    });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    if ((event.key === "Enter" || event.key === " ") && marked(event)) {
      event.preventDefault();
      show(marked(event));
    }
  });
  document.getElementById("tip-close").addEventListener("click", close);

  for (const button of document.querySelectorAll("[data-open]"))
    button.addEventListener("click", () => {
      for (const part of document.querySelectorAll(".flow details")) part.open = button.dataset.open === "1";
    });

  const value = (row, k) => row.cells[k].dataset.v ?? row.cells[k].textContent;
  for (const head of document.querySelectorAll("table.sortable th"))
    head.querySelector("button").addEventListener("click", () => {
      const table = head.closest("table");
      const k = head.cellIndex;
      const down = head.getAttribute("aria-sort") !== "descending" && head.classList.contains("n");
      const sign = down || head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [x, y] = [value(a, k), value(b, k)];
        return sign * (head.classList.contains("n") ? (+x || 0) - (+y || 0) : x.localeCompare(y));
      });
      table.tBodies[0].append(...rows);
    });
})();
