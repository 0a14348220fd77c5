/* Parts of the overview's tables: arms that failed, and attacks. */
"use strict";

/** Return a row for each arm and seed that failed, for the end of a table of so many columns. */
function failedRows(failed, columns) {
  return failed.map(({ arm, seed, reason }) =>
    el("tr.failed", {}, el("th.left", { scope: "row" }, `${arm}, seed ${seed}`), el("td.left", { colspan: columns - 1 }, `failed: ${reason}`)),
  );
}
