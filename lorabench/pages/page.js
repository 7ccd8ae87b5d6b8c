"use strict";
// A column is sorted by the number that its cells begin with, or by its text; what has no number comes last.
const sortTable = (head, table) => {
  const column = [...head.parentElement.children].indexOf(head);
  const rising = head.getAttribute("aria-sort") === "none" ? head.classList.contains("text") : head.getAttribute("aria-sort") === "descending";
  const text = (row) => row.cells[column].textContent.trim();
  const number = (row) => parseFloat(text(row).replace("<", "").replace("\u2212", "-"));
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const numeric = !head.classList.contains("text");
  rows.sort((a, b) => {
    if (!numeric) return (rising ? 1 : -1) * text(a).localeCompare(text(b), "en", { numeric: true });
    const [x, y] = [number(a), number(b)];
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
    return rising ? x - y : y - x;
  });
  for (const other of head.parentElement.children) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  body.append(...rows);
};
for (const table of document.querySelectorAll("table")) {
  for (const head of table.querySelectorAll("th")) {
    head.querySelector("button").addEventListener("click", () => sortTable(head, table));
  }
}
for (const input of document.querySelectorAll("input[type=search]")) {
  const table = input.closest(".table").querySelector("table");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
// Paper shows all that is folded, and folds it again.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const one of folded) one.open = true;
});
addEventListener("afterprint", () => { for (const one of folded) one.open = false; });
