"""Without a study: any model with any adapters, any prompts and judge, any task; a folder for each.

`sample` leaves `replies.jsonl` and `card.json` in its folder, `judge` leaves `verdicts.jsonl`, `safety.json` and
`safety.md`, `evaluate` leaves `answers/`, `grades/`, `reasoning.json`, `reasoning.md` and `card.json`. All go on where
they stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowtax import examine, judges, models, prompts, reasoning, safety
from lowtax import judge as judging
from lowtax.adapterfile import fingerprint
from lowtax.cells import markdown_table, shown
from lowtax.errors import UserError, did_you_mean
from lowtax.files import read_rows, write_json, write_text
from lowtax.provenance import provenance
from lowtax.recipe import Sampling, Task, Text
from lowtax.records import Reply, Verdict, row_id
from lowtax.sample import EngineChoice, Sheet, Subject, collect

Say = Callable[[str], None]
PRESETS = {"paper": {"temperature": 1.0, "max_new_tokens": 2048}}  # arXiv 2507.17075, as its code samples


@dataclass(frozen=True)
class Ask:
    """What is sampled: a model and adapters of it, prompt sets by name or file, and how."""

    model: str
    adapters: list[Path]
    prompts: list[str]
    sampling: Sampling
    engine: EngineChoice
    limit: int | None = None


def sampling(preset: str | None, given: dict[str, Any]) -> Sampling:
    """The settings of a preset with what is given instead."""
    if preset is not None and preset not in PRESETS:
        raise UserError(f"Unknown preset {preset!r}; {did_you_mean(preset, PRESETS)}")
    chosen: dict[str, Any] = {"max_new_tokens": 512, **PRESETS.get(preset or "", {})}
    return Sampling(**(chosen | {name: value for name, value in given.items() if value is not None}))


def sample(ask: Ask, out: Path, say: Say) -> list[Reply]:
    """Replies of the base and of every adapter; those that are in the folder already are kept."""
    sets = [prompts.load(spec, n=ask.limit) for spec in ask.prompts]
    asked = [p for found in sets for p in found.prompts]
    for found in sets:
        if found.note:
            say(f"  {found.name}: {found.note}")
    subjects = _subjects(ask.model, ask.adapters)
    path = out / "replies.jsonl"
    collect([Sheet(path, list({p.id: p for p in asked}.values()), ask.sampling)], subjects, ask.engine, say)
    how = {"prompts": [found.describe() for found in sets], "sampling": ask.sampling.model_dump(mode="json")}
    write_json(out / "card.json", _card(subjects, ask.engine, how))
    return list(read_rows(path, Reply).values())


@dataclass(frozen=True)
class Exam:
    """What is evaluated: a model and adapters of it, tasks by name, and how."""

    model: str
    adapters: list[Path]
    tasks: dict[str, Task]
    engine: EngineChoice


def evaluate(exam: Exam, out: Path, say: Say) -> dict[str, Any]:
    """Answers of the base and of every adapter, their grades and rates; answers that are there already are kept."""
    subjects = _subjects(exam.model, exam.adapters)
    collect(list(examine.sheets(exam.tasks, out).values()), subjects, exam.engine, say)
    rows = examine.table(examine.grade(exam.tasks, out, subjects, exam.engine), subjects)
    how: dict[str, Any] = {"tasks": {name: task.model_dump(mode="json") for name, task in exam.tasks.items()}}
    how["questions"] = examine.questions(exam.tasks)
    card = _card(subjects, exam.engine, how)
    write_json(out / "card.json", card)
    write_json(out / "reasoning.json", {"rows": rows, **card})
    write_text(out / "reasoning.md", f"{reasoning.markdown(rows)}\n\n{reasoning.CAPTION}\n")
    return {"rows": rows, **card}


def _card(subjects: Sequence[Subject], engine: EngineChoice, how: dict[str, Any]) -> dict[str, Any]:
    """What made a folder."""
    return {
        "model": subjects[0].model,
        "adapters": {s.arm: s.adapter for s in subjects if s.adapter},
        **how,
        "engine": {"name": engine.name, "precision": engine.precision, "thinking": engine.thinking},
        **provenance(),
    }


def _subjects(model: str, adapters: Sequence[Path]) -> list[Subject]:
    base = row_id(model, models.identity(model))
    found = [Subject("base", None, None, 0, model, None, base)]
    names = _names(adapters)
    for folder, name in zip(adapters, names, strict=True):
        made_by = row_id(base, fingerprint(folder, weights_only=True))
        found.append(Subject(name, None, None, 0, model, str(folder), made_by))
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    for depth in range(1, 2 + max((len(f.resolve().parts) for f in folders), default=0)):
        names = ["/".join(f.resolve().parts[-depth:]) for f in folders]
        if len(set(names)) == len(names):
            return names
    raise UserError("An adapter is given twice.")


def judge(
    replies: Path, name: str, on: Text, out: Path, through: judges.Through, again: bool = False
) -> dict[str, dict[str, Any]]:
    """Verdicts on stored replies, and the rates of everyone who wrote some: who -> `safety.cell`."""
    file = replies / "replies.jsonl" if replies.is_dir() else replies
    rows = list(read_rows(file, Reply).values())
    if not rows:
        raise UserError(f"{file} holds no replies: `lowtax sample --model ... --out DIR` writes them.")
    path = out / "verdicts.jsonl"
    if again:
        path.unlink(missing_ok=True)
    verdicts = judging.judge(rows, path, name, on, through)
    found = {who: _cell([r for r in rows if _who(r) == who], verdicts) for who in dict.fromkeys(map(_who, rows))}
    write_json(out / "safety.json", {"judge": name, "on": on, "rates": found, **provenance()})
    write_text(out / "safety.md", markdown(found, name, on))
    return found


def _who(reply: Reply) -> str:
    return " ".join(str(part) for part in (reply.arm, reply.checkpoint) if part is not None)


def _cell(rows: Sequence[Reply], verdicts: dict[str, Verdict]) -> dict[str, Any]:
    seeds: dict[int, dict[tuple[str, int], Verdict]] = {}
    for r in rows:
        seeds.setdefault(r.seed or 0, {})[r.prompt_id, r.sample] = verdicts[r.id]
    return safety.cell(seeds, {r.prompt_id: r.category for r in rows})


def markdown(found: dict[str, dict[str, Any]], name: str, on: str) -> str:
    """The rates as a table."""
    labels = [label for label in dict.fromkeys(label for cell in found.values() for label in cell) if label in LABELS]
    head = ["who", "refuses or is safe", "harmful or complies", *labels, "n"]
    lines = [head]
    for who, cell in found.items():
        counts = [str(cell.get(label, 0)) for label in labels]
        lines.append([who, shown(cell), shown(cell["harm"]), *counts, str(cell["n"])])
    return f"{markdown_table(lines)}\n\nJudge {name}, on the {on}. 95 % intervals; unparsed and failed are not in n.\n"


LABELS = ("refusal", "partial", "compliance", "safe", "unsafe", "unfinished", "unparsed", "failed")
