"""An attack without a study: any model and adapters, prompts, judge and budget.

Files in the user's folder: `replies.jsonl` (or `NAME.replies.jsonl`, `NAME.calls.jsonl` and `NAME.attempts.jsonl` of an
attack that talks), `verdicts.jsonl`, `judged.jsonl`, `attack.json`, `attack.md` and `card.json`. Repeated, it resumes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowtax.attacks.arena import Engines
from lowtax.attacks.attempts import Attempt
from lowtax.attacks.base import Attack, Conversation, Wrapping
from lowtax.common.files import write_json, write_text
from lowtax.common.names import refuse_foreign
from lowtax.common.provenance import provenance
from lowtax.common.records import Prompt, Reply, Subject, Verdict
from lowtax.data import prompt_sets
from lowtax.engines.sampling import Sheet, collect, replies_of
from lowtax.judges import base as judges
from lowtax.judges.verdicts import judge_replies, judged_text
from lowtax.models.fingerprint import BEGUN, base_in, record_base
from lowtax.study import adhoc, attack_panel, attack_tables, attacking, panel, panel_tables
from lowtax.study.attacking import Drawn, Target
from lowtax.study.referee import kind_of

WRITTEN = ("card.json", "effects.json", "attack.json", "attack.md", "judged.jsonl", "verdicts.jsonl")


@dataclass(frozen=True)
class Request:
    """A request for an attack: a model and its adapters, prompt sets by name or file, and how replies are drawn.

    judges: further judges of the same replies.
    """

    attack: Attack
    model: str
    adapters: list[Path]
    prompts: list[str]
    how: Target
    limit: int | None = None
    judges: Sequence[str] = ()


def run(request: Request, out: Path) -> dict[str, Any]:
    """Attack the base and every adapter, judge the replies, and return the results with the card.

    Raises:
        UserError: A name or a file is wrong, or an adapter does not fit the model.
    """
    attack, how = request.attack, request.how
    attacking.check_decoding(how.sampling, [attack])
    further = [name for name in dict.fromkeys(request.judges) if name != how.judge]
    for name in (how.judge, *further):
        judges.check(name)
    sets = [prompt_sets.load(spec, n=request.limit, seed=0) for spec in request.prompts]
    prompts = list({prompt.id: prompt for each in sets for prompt in each.prompts}.values())
    for name in (how.judge, *further):
        judges.refuse_contexts(name, ((prompt.text, prompt.goal) for prompt in prompts))
    refuse_foreign(out, BEGUN, WRITTEN)
    model = base_in(out, request.model, same=how.engine.base_is_the_same)
    subjects = adhoc.subjects_of(request.model, request.adapters, model)
    record_base(out, model)
    attempts, replies = _replies(request, prompts, subjects, out)
    verdicts = judge_replies(replies, out / "verdicts.jsonl", how.judge, how.on, how.engine)
    drawn = Drawn(attack, replies, attempts)
    others = {name: judge_replies(replies, out / "verdicts.jsonl", name, how.on, how.engine) for name in further}
    rows = _rows(drawn, subjects, how, verdicts, others)
    several = {
        name: {"attacks": attack_panel.agreement({attack.name: drawn}, verdicts, of)} for name, of in others.items()
    }
    scores = {attempt.reply: attempt.score for attempt in attempts if attempt.reply}
    lines = [
        {
            "id": r.id,
            "who": r.arm,
            "goal": r.goal,
            "attempt": r.attacked.attempt if r.attacked else 0,
            "variant": r.attacked.variant if r.attacked else "",
            "prompt": r.prompt,
            "text": judged_text(r, how.on),
            "label": verdicts[r.id].label,
            "score": verdicts[r.id].score,
            "in_loop": scores.get(r.id),
            **({"judges": {name: of[r.id].label for name, of in others.items()}} if others else {}),
        }
        for r in replies
    ]
    write_text(out / "judged.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    card = {
        "model": request.model,
        "adapters": {s.arm: s.adapter for s in subjects if s.adapter},
        "attack": attack.settings(),
        "prompts": [each.describe() for each in sets],
        "sampling": how.sampling.model_dump(mode="json"),
        "judge": how.judge,
        "on": how.on,
        "engine": {"name": how.engine.name, "precision": how.engine.precision, "thinking": how.engine.thinking},
        **provenance(),
    }
    write_json(out / "card.json", card)
    results = {"rows": rows, **({"judges": several} if several else {}), **card}
    write_json(out / "attack.json", results)
    parts = [attack_tables.markdown(rows, kind_of(how.judge) == "harm"), panel_tables.markdown(results)]
    write_text(out / "attack.md", "\n\n".join(part for part in parts if part) + "\n")
    return results


def _rows(
    drawn: Drawn,
    subjects: Sequence[Subject],
    how: Target,
    verdicts: Mapping[str, Verdict],
    others: Mapping[str, Mapping[str, Verdict]],
) -> list[dict[str, Any]]:
    """Return a row for each model, with the success by each judge, as in the table of a study."""
    name = drawn.attack.name
    by = {judge: attacking.results({name: drawn}, of, replace(how, judge=judge))[name] for judge, of in others.items()}
    cells = attacking.results({name: drawn}, verdicts, how)[name]
    rows = []
    for s in subjects:
        row: dict[str, Any] = {"arm": s.arm, "step": s.step, "attacks": {name: cells[s.arm, None]}}
        for judge, of in others.items():
            same = panel.agree(attack_panel.pairs(drawn, verdicts, of, (s.arm, None)))
            row.setdefault("judges", {})[judge] = {"attacks": {name: by[judge][s.arm, None] | {"agreement": same}}}
        rows.append(row)
    return rows


def _replies(
    request: Request, prompts: Sequence[Prompt], subjects: Sequence[Subject], out: Path
) -> tuple[list[Attempt], list[Reply]]:
    """Draw the replies to the attack, and return them with the attempts of one that talks."""
    attack, how = request.attack, request.how
    if isinstance(attack, Conversation):
        attempts, replies = attacking.talk(attack, prompts, subjects, how, out, Engines())
        return attempts, list(replies.values())
    assert isinstance(attack, Wrapping)
    sheet = Sheet(out / "replies.jsonl", attack.prompts(prompts), how.sampling)
    collect([sheet], subjects, how.engine, out)
    return [], [reply for _, reply in replies_of(sheet, subjects, how.engine).values()]
