"use strict";
(() => {
  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copies);
      let done = false;
      try {
        await navigator.clipboard.writeText(source.textContent);
        done = true;
      } catch (refused) {  // no clipboard for pages from a file: select, and copy the selection
        const range = document.createRange();
        range.selectNodeContents(source);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        done = document.execCommand("copy");
      }
      button.textContent = done ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const words = new Intl.Collator("en", { numeric: true });

  // Numbers before words; what is missing comes last in both directions.
  const compare = (column, sign) => (one, other) => {
    const [a, b] = [one.cells[column], other.cells[column]];
    const missing = ("missing" in a.dataset) - ("missing" in b.dataset);
    if (missing || "missing" in a.dataset) return missing;
    const [x, y] = [a.dataset.sort, b.dataset.sort];
    if (x !== undefined && y !== undefined) return sign * (Number(x) - Number(y));
    if (x !== y) return x === undefined ? sign : -sign;
    return sign * words.compare(a.textContent, b.textContent);
  };

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      body.append(...[...body.rows].sort(compare(column, descending ? -1 : 1)));
    });
  });

  const filter = document.querySelector(".filter");
  const boxes = [...filter.querySelectorAll("input")];
  filter.hidden = boxes.length < 2;
  const show = () => {
    const wanted = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    let count = 0;
    for (const row of body.rows) {
      row.hidden = !wanted.has(row.dataset.state);
      count += row.hidden ? 0 : 1;
    }
    document.getElementById("shown").textContent = `${count} of ${body.rows.length} trials`;
  };
  filter.addEventListener("change", show);
  if (boxes.length) show();  // a browser may remember boxes that were cleared before a reload
})();
