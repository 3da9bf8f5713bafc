// Sorting and searching the tables of latents; without it they stand as they are.
for (const table of document.querySelectorAll("table.latents")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const tools = document.querySelector(`[data-for="${table.id}"]`);
  tools.hidden = false;
  heads.forEach((head, column) => {
    if (!head.dataset.sort) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => Number(row.cells[column].dataset.value);
      body.append(...[...body.rows].sort((a, b) => (key(a) - key(b)) * (down ? -1 : 1)));
    });
  });
  const search = tools.querySelector("input"), count = tools.querySelector("output");
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      shown += !row.hidden;
    }
    count.textContent = wanted ? `${shown} of ${body.rows.length}` : "";
  });
}
