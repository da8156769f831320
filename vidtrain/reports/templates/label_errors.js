"use strict";
// decisions: by the number of a row, the number of its class, or "drop"
function listingCsv(cells, decisions) {
  const line = (fields) => fields.map((field) => '"' + field.replaceAll('"', '""') + '"').join(",") + "\n";
  let text = line(cells.columns);
  cells.rows.forEach(([label, path, ...rest], row) => {
    const decision = row in decisions ? decisions[row] : label;
    if (decision !== "drop") text += line([path, cells.classes[decision], ...rest]);
  });
  return text;
}

function summary(cells, decisions) {
  const rows = Object.keys(decisions);
  const dropped = rows.filter((row) => decisions[row] === "drop").length;
  const kept = rows.filter((row) => decisions[row] === cells.rows[row][0]).length;
  return `${rows.length} looked at: ${kept} kept, ${rows.length - kept - dropped} corrected, ${dropped} dropped`;
}

if (typeof document !== "undefined") {
  const cells = JSON.parse(document.getElementById("cells").textContent);
  const cards = [...document.querySelectorAll(".card")];
  // pages of other videos or labels have decisions of their own
  let hash = 0;
  for (const letter of JSON.stringify(cells)) hash = (Math.imul(hash, 31) + letter.codePointAt(0)) | 0;
  const key = `vidtrain label_errors ${hash}`;
  let decisions = {};
  try { decisions = JSON.parse(localStorage.getItem(key)) || {}; } catch { /* a browser may keep nothing for files */ }

  const show = () => {
    for (const card of cards) {
      const decision = decisions[card.dataset.row];
      card.classList.toggle("decided", decision !== undefined);
      for (const button of card.querySelectorAll("button"))
        button.setAttribute("aria-pressed", String(decision) === button.dataset.decision);
      card.querySelector("select").value = decision === undefined || decision === "drop" ? "" : String(decision);
    }
    document.getElementById("state").textContent = summary(cells, decisions);
    try { localStorage.setItem(key, JSON.stringify(decisions)); } catch { /* as above */ }
  };
  const decide = (card, value) => {
    const decision = value === "" || value === "drop" ? value : Number(value);
    if (decision === "" || decisions[card.dataset.row] === decision) delete decisions[card.dataset.row];
    else decisions[card.dataset.row] = decision;
    show();
  };
  for (const card of cards) {
    card.addEventListener("click", (event) => {
      if (event.target.dataset.decision !== undefined) decide(card, event.target.dataset.decision);
    });
    card.querySelector("select").addEventListener("change", (event) => decide(card, event.target.value));
  }
  document.getElementById("forget").addEventListener("click", () => { decisions = {}; show(); });
  document.getElementById("download").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([listingCsv(cells, decisions)], { type: "text/csv" }));
    link.download = "corrected.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  show();
}
