/* Parts of the overview's tables: arms that failed, and attacks. */
"use strict";

/** Return a row for each arm and seed that failed, for the end of a table of so many columns. */
function failedRows(failed, columns) {
  return failed.map(({ arm, seed, reason }) =>
    el("tr.failed", {}, el("th.left", { scope: "row" }, `${arm}, seed ${seed}`), el("td.left", { colspan: columns - 1 }, `failed: ${reason}`)),
  );
}

/** The success of every attack on every model that it was used on, with links to the replies. */
function attacked({ rows, caption }, columns) {
  if (!rows.length) return "";
  const count = (n) => (n === null ? "–" : grouped.format(n));
  const head = ["arm", "attack", "success", "requests", "attempts, at most", "of single attempts", "Safe@1", "unfinished", "no verdict", "off goal", "unusable", "replies"];
  const body = rows.map(({ column, attack, success, budget, attempts, safe, counts: [unfinished, unparsed, failed, offGoal], unusable }) => [
    el("span.arm", {}, badge(columns[column]), labelOf(columns[column])),
    attack,
    ...[figure(success, "rate"), count(success?.[3] ?? null), count(budget), figure(attempts, "rate"), figure(safe, "rate")],
    ...[count(unfinished), count(unparsed === null ? failed : unparsed + failed), count(offGoal), unusable || "0"],
    el("a", { href: `#attack=${column}.${encodeURIComponent(attack)}` }, "show"),
  ]);
  return el("div.attacks", {}, el("h3", {}, "Attacks"), scrolling("Attacks", table("Success of attacks, 95 % intervals by request", head, body, 2)), el("p.note", {}, caption));
}

/** What was put to the model for a reply to an attack: every turn as it was sent, and the beginning of the reply. */
function sentTo({ attempt, variant, sent, begun, part, score, off_goal: offGoal }, hidden) {
  const facts = [`attempt ${grouped.format(attempt)}`, variant, score !== undefined && `score in the attack ${score.toFixed(2)}`, offGoal && "off goal: the reply has no word of the request"];
  const line = el("p.facts", {}, facts.filter(Boolean).join(", "));
  if (hidden) return line;
  const turns = sent.map(([role, text]) => el("div.turn", {}, el("p.key", {}, role), el("div.text", {}, text)));
  if (begun) turns.push(el("div.turn", {}, el("p.key", {}, `the reply was begun with this ${part}`), el("div.text", {}, begun)));
  const title = sent.length > 1 ? `the conversation that was put to the model, ${sent.length} turns` : "what was put to the model";
  return el("details.sent", { open: true }, el("summary", {}, title), line, turns);
}

/** Return all texts of a reply in which people search, with what was put to the model. */
function wordsOf(reply) {
  const sent = (reply.attacked?.sent ?? []).map(([, text]) => text);
  return [reply.thought, reply.answer, ...sent, reply.attacked?.begun].filter(Boolean).join("\n");
}
