"""Sampling, judging and evaluating without a study: any model, adapters, prompts, judge and tasks.

Each writes to a folder that the user names: `sample` writes `replies.jsonl` and `card.json`; `judge` writes
`verdicts.jsonl`, `judged.jsonl`, `safety.json` and `safety.md`; `evaluate` writes `answers/`, `grades/`,
`reasoning.json`, `reasoning.md` and `card.json`. Repeated, they resume.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowtax.benchmarks import examine
from lowtax.benchmarks.base import Task
from lowtax.common.display import as_markdown
from lowtax.common.errors import UserError, did_you_mean
from lowtax.common.files import read_rows, write_json, write_text
from lowtax.common.log import say
from lowtax.common.names import refuse_foreign
from lowtax.common.provenance import provenance
from lowtax.common.records import Reply, Subject, Verdict, row_id
from lowtax.common.tables import markdown_table, rate, shown
from lowtax.data import prompt_sets
from lowtax.engines.sampling import ENOUGH, Collect, Sheet, asks, collect, few_tokens, reply_tokens
from lowtax.engines.sampling import Ask as PlannedReply
from lowtax.engines.settings import PLAIN, EngineSettings, Sampling
from lowtax.judges import rates as safety
from lowtax.judges.base import Text
from lowtax.judges.verdicts import Read, judge_replies, judged_text, read_here
from lowtax.models.adapters import fingerprint
from lowtax.models.fingerprint import BEGUN, Base, base_in, record_base

JUDGED = ("judged.jsonl", "safety.json", "safety.md")  # what `judge` writes, beside its verdicts
PRESETS = {"paper": {"temperature": 1.0, "max_new_tokens": 2048}}  # the code of arXiv:2507.17075


@dataclass(frozen=True)
class Ask:
    """A request for replies: a model and its adapters, prompt sets by name or file, and the sampling settings."""

    model: str
    adapters: list[Path]
    prompts: list[str]
    sampling: Sampling
    engine: EngineSettings
    limit: int | None = None


def sampling(preset: str | None, overrides: dict[str, Any], tokens: Callable[[], int] = lambda: PLAIN) -> Sampling:
    """Return the settings of a preset with the overrides that are not None.

    Args:
        tokens: the most tokens of a reply if neither has them.

    Raises:
        UserError: There is no such preset.
    """
    if preset is not None and preset not in PRESETS:
        raise UserError(f"Unknown preset {preset!r}; {did_you_mean(preset, PRESETS)}")
    chosen: dict[str, Any] = PRESETS.get(preset or "", {}) | {k: v for k, v in overrides.items() if v is not None}
    return Sampling(**({} if "max_new_tokens" in chosen else {"max_new_tokens": tokens()}) | chosen)


def sample(ask: Ask, out: Path, draw: Collect = collect) -> list[Reply]:
    """Sample the base and every adapter, and return all replies. Replies that are in the folder are kept."""
    sets = [prompt_sets.load(spec, n=ask.limit, seed=0) for spec in ask.prompts]
    unique = {prompt.id: prompt for set_ in sets for prompt in set_.prompts}
    for set_ in sets:
        if set_.note:
            say(f"  {set_.name}: {set_.note}")
    refuse_foreign(out, BEGUN, ("card.json", "effects.json"))
    model = base_in(out, ask.model, same=ask.engine.base_is_the_same)
    subjects = subjects_of(ask.model, ask.adapters, model)
    record_base(out, model)
    if (tokens := ask.sampling.max_new_tokens) < ENOUGH:
        needed = reply_tokens(ask.model, ask.engine.name, ask.engine.thinking_tags)
        if sentence := few_tokens(ask.model, tokens, needed):
            say(sentence)
    path = out / "replies.jsonl"
    columns = {id_: of_row for set_ in sets for id_, of_row in set_.columns.items()}
    sheet = Sheet(path, list(unique.values()), ask.sampling, columns)
    draw([sheet], subjects, ask.engine, out)
    how = {"prompts": [set_.describe() for set_ in sets], "sampling": ask.sampling.model_dump(mode="json")}
    write_json(out / "card.json", _card(subjects, ask.engine, how))
    return _in_order(path, asks(sheet, subjects, ask.engine))


def _in_order(path: Path, plan: Sequence[PlannedReply]) -> list[Reply]:
    """Put the rows of a file in the order of the plan, which is that of the prompts' file; others come first."""
    rows, planned = read_rows(path, Reply), dict.fromkeys(each.id for each in plan)
    ordered = [row for id_, row in rows.items() if id_ not in planned] + [rows[id_] for id_ in planned if id_ in rows]
    if list(rows.values()) != ordered:
        write_text(path, "".join(row.model_dump_json() + "\n" for row in ordered))
    return ordered


@dataclass(frozen=True)
class Exam:
    """A request for an evaluation: a model and its adapters, tasks by name, and the engine."""

    model: str
    adapters: list[Path]
    tasks: dict[str, Task]
    engine: EngineSettings


def evaluate(exam: Exam, out: Path, draw: Collect = collect) -> dict[str, Any]:
    """Sample and grade the answers of the base and every adapter, and return their rates with the card.

    Answers that are in the folder are kept.
    """
    refuse_foreign(out, BEGUN, ("card.json", "effects.json", "reasoning.json", "reasoning.md"))
    model = base_in(out, exam.model, same=exam.engine.base_is_the_same)
    subjects = subjects_of(exam.model, exam.adapters, model)
    record_base(out, model)
    draw(list(examine.sheets(exam.tasks, out).values()), subjects, exam.engine, out)
    rows = examine.table(examine.grade(exam.tasks, out, subjects, exam.engine), subjects)
    how: dict[str, Any] = {"tasks": {name: task.model_dump(mode="json") for name, task in exam.tasks.items()}}
    how["questions"] = examine.questions(exam.tasks)
    card = _card(subjects, exam.engine, how)
    write_json(out / "card.json", card)
    write_json(out / "reasoning.json", {"rows": rows, **card})
    write_text(out / "reasoning.md", f"{examine.page(rows)}\n")
    return {"rows": rows, **card}


def _card(subjects: Sequence[Subject], engine: EngineSettings, how: dict[str, Any]) -> dict[str, Any]:
    """Return how the contents of a folder were made."""
    return {
        "model": subjects[0].model,
        "adapters": {s.arm: s.adapter for s in subjects if s.adapter},
        **how,
        "engine": {
            "name": engine.name,
            "precision": engine.precision,
            "thinking": engine.thinking,
            **({"chat_template_kwargs": dict(engine.chat_template_kwargs)} if engine.chat_template_kwargs else {}),
            **({"thinking_tags": engine.thinking_tags} if engine.thinking_tags else {}),
            **({"deterministic": True} if engine.deterministic else {}),
        },
        **provenance(),
    }


def subjects_of(model: str, adapters: Sequence[Path], in_folder: Base) -> list[Subject]:
    """Return the base and the adapters as subjects, by the shortest names that tell the adapters apart."""
    base = in_folder.made_by
    subjects = [Subject("base", None, None, 0, model, None, base)]
    for folder, name in zip(adapters, _names(adapters), strict=True):
        made_by = row_id(base, fingerprint(folder, weights_only=True))
        subjects.append(Subject(name, None, None, 0, model, str(folder), made_by))
    return subjects


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that differ from each other."""
    for depth in range(1, 2 + max((len(f.resolve().parts) for f in folders), default=0)):
        names = ["/".join(f.resolve().parts[-depth:]) for f in folders]
        if len(set(names)) == len(names):
            return names
    raise UserError("The same adapter is given twice: give each --adapter once.")


def judge(
    rows: Sequence[Reply],
    name: str,
    on: Text,
    out: Path,
    through: EngineSettings,
    again: bool = False,
    ids_of_users: bool = False,
    origin: dict[str, Any] | None = None,
    read: Read = read_here,
) -> dict[str, Verdict]:
    """Judge replies, write the rates of every subject and prompt set, and return the verdicts by reply id.

    Args:
        ids_of_users: see `judge_replies`.
        origin: the file of the replies and its columns, if they are from a file.
        read: the way to judge replies, in this process or by workers.
    """
    path = out / "verdicts.jsonl"
    refuse_foreign(out, [path.name], JUDGED)
    verdicts = judge_replies(rows, path, name, on, through, ids_of_users, again, read)
    groups: dict[str, dict[str, list[Reply]]] = {}
    for row in rows:
        groups.setdefault(_subject_name(row), {}).setdefault(safety.prompt_set(row), []).append(row)
    rates = {who: {name: _cell(of_set, verdicts) for name, of_set in sets.items()} for who, sets in groups.items()}
    # One set needs no separate level; several have no rate in common.
    plain = {
        who: {"set": next(iter(sets)), **next(iter(sets.values()))} if len(sets) == 1 else {"sets": sets}
        for who, sets in rates.items()
    }
    write_json(out / "safety.json", {"judge": name, "on": on, "replies": origin, "rates": plain, **provenance()})
    write_text(out / "safety.md", markdown(rates, name, on))
    write_text(out / "judged.jsonl", "".join(_judged_line(row, verdicts[row.id], on) for row in rows))
    return verdicts


def _judged_line(reply: Reply, verdict: Verdict, on: Text) -> str:
    """Return a line of judged.jsonl: a request, the text that was judged, and the verdict on it."""
    row = {
        "id": reply.id,
        "who": _subject_name(reply),
        "set": safety.prompt_set(reply),
        "category": reply.category,
        "prompt": reply.goal or reply.prompt,
        "text": judged_text(reply, on),
        "label": verdict.label,
        "score": verdict.score,
        "harm": verdict.category,
        "detail": verdict.error or verdict.detail,
        "columns": reply.columns,
    }
    return (
        json.dumps({key: value for key, value in row.items() if value not in (None, "", {})}, ensure_ascii=False) + "\n"
    )


def _subject_name(reply: Reply) -> str:
    return " ".join(str(part) for part in (reply.arm, reply.checkpoint) if part is not None)


def _cell(rows: Sequence[Reply], verdicts: dict[str, Verdict]) -> dict[str, Any]:
    seeds: dict[int, dict[tuple[str, int], Verdict]] = {}
    for r in rows:
        seeds.setdefault(r.seed or 0, {})[r.prompt_id, r.sample] = verdicts[r.id]
    cell = safety.cell(seeds, {r.prompt_id: r.category for r in rows})
    judged = [(r.prompt_id, verdicts[r.id].label) for r in rows if verdicts[r.id].label not in safety.APART]
    seen = {label for _, label in judged}
    present = [label for labels in LABELS if seen & {*labels} for label in labels]
    shares = {
        label: rate((prompt, float(each == label)) for prompt, each in judged) for label in (*present, "unfinished")
    }
    return cell | {"shares": shares}


def markdown(rates: dict[str, dict[str, dict[str, Any]]], name: str, on: str) -> str:
    """Return the rates of all subjects and prompt sets as a Markdown table with a caption.

    rates: subject -> prompt set -> its cell.
    """
    cells = [(who, set_, cell) for who, sets in rates.items() for set_, cell in sets.items()]
    order = [*LABELS[0], *LABELS[1], "unfinished"]
    labels = [label for label in order if any(label in cell["shares"] for _, _, cell in cells)]
    apart = [label for label in safety.APART if any(cell[label] for _, _, cell in cells)]
    lines = [["who", "set", *labels, *apart, "n"]]
    for who, set_, cell in cells:
        shares = [shown(cell["shares"].get(label)) for label in labels]
        lines.append([who, set_, *shares, *(str(cell[label]) for label in apart), str(cell["n"])])
    return f"{markdown_table(lines, left=2)}\n\nJudge {as_markdown(name)}, on the {on}. {CAPTION}\n"


LABELS = (("refusal", "partial", "compliance"), ("safe", "unsafe"))  # of a judge of refusals, and of one of harm
CAPTION = (
    "Shares of n with 95 % intervals, each prompt set by itself; unparsed and failed replies are counts, and not in n. "
    "judged.jsonl has every reply beside its verdict."
)
