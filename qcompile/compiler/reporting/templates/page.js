"use strict";

// Tooltip: shows the <title> of the mark, or the data-tip of the cell, under the pointer at once.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);

function tipOf(target) {
  const cell = target.closest("[data-tip]");
  if (cell) return cell.dataset.tip;
  const mark = target.closest("svg g, svg rect");
  const title = mark && mark.querySelector(":scope > title");
  if (!title) return mark ? mark.dataset.title : "";
  mark.dataset.title = title.textContent; // kept here, so that the browser's own slow tooltip stays away
  mark.setAttribute("aria-label", title.textContent);
  title.remove();
  return mark.dataset.title;
}

document.addEventListener("pointermove", (event) => {
  const text = event.target instanceof Element ? tipOf(event.target) : "";
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = Math.max(8, Math.min(event.clientX + 14, room)) + "px";
  const below = event.clientY + 18;
  const above = event.clientY - tip.offsetHeight - 12;
  tip.style.top = (below + tip.offsetHeight > innerHeight && above > 0 ? above : below) + "px";
});
document.addEventListener("pointerleave", () => { tip.hidden = true; });
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

// Tables with the class "sortable": a click on a heading sorts by that column, a second click turns it round.
for (const heading of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => {
    const column = heading.cellIndex;
    const descending = heading.getAttribute("aria-sort") === "ascending";
    const body = heading.closest("table").tBodies[0];
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const rows = [...body.rows].sort((a, b) => key(a).localeCompare(key(b), "en", { numeric: true }));
    const numbers = rows.every((row) => !Number.isNaN(Number(key(row))));
    if (numbers) rows.sort((a, b) => Number(key(a)) - Number(key(b)));
    if (descending) rows.reverse();
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    body.append(...rows);
  });
}
