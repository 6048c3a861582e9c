"use strict";
// Sort a table by the column whose heading is pressed; a second press turns the order round.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const body = heading.closest("table").tBodies[0];
    const column = heading.cellIndex;
    const down = heading.getAttribute("aria-sort") === "ascending";
    const key = (row) => {
      const text = row.cells[column].dataset.sort ?? "";
      return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
    };
    const compare = (a, b) => {
      const [left, right] = [key(a), key(b)];
      // Cells without a value stay last in either order.
      if (left === "" || right === "") return (left === "") - (right === "");
      const order = typeof left === "number" && typeof right === "number" ? left - right : String(left).localeCompare(right);
      return down ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  });
}
// Save a figure as the SVG that the page shows; its colours fall back to those of the light theme.
for (const button of document.querySelectorAll("button.save")) {
  button.addEventListener("click", () => {
    const text = button.closest("figure").querySelector("svg").outerHTML;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    link.download = `${button.dataset.name}.svg`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
// On paper nothing can be unfolded.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((fold) => { fold.open = true; }));
