"""An attack without a study: any model and adapters, prompts, judge and budget.

Files in the user's folder: `replies.jsonl` (or `NAME.replies.jsonl`, `NAME.calls.jsonl` and `NAME.attempts.jsonl` of an
attack that talks), `verdicts.jsonl`, `judged.jsonl`, `attack.json`, `attack.md` and `card.json`. Repeated, it resumes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowtax.attacks.arena import Engines
from lowtax.attacks.attempts import Attempt
from lowtax.attacks.base import Attack, Conversation, Wrapping
from lowtax.common.files import write_json, write_text
from lowtax.common.names import refuse_foreign
from lowtax.common.provenance import provenance
from lowtax.common.records import Prompt, Reply, Subject
from lowtax.data import prompt_sets
from lowtax.engines.sampling import Sheet, collect, replies_of
from lowtax.judges import base as judges
from lowtax.judges.verdicts import judge_replies, judged_text
from lowtax.models.fingerprint import BEGUN, base_in, record_base
from lowtax.study import adhoc, attack_tables, attacking
from lowtax.study.attacking import Target
from lowtax.study.referee import kind_of

WRITTEN = ("card.json", "effects.json", "attack.json", "attack.md", "judged.jsonl", "verdicts.jsonl")


@dataclass(frozen=True)
class Request:
    """A request for an attack: a model and its adapters, prompt sets by name or file, and how replies are drawn."""

    attack: Attack
    model: str
    adapters: list[Path]
    prompts: list[str]
    how: Target
    limit: int | None = None


def run(request: Request, out: Path) -> dict[str, Any]:
    """Attack the base and every adapter, judge the replies, and return the results with the card.

    Raises:
        UserError: A name or a file is wrong, or an adapter does not fit the model.
    """
    attack, how = request.attack, request.how
    attacking.check_decoding(how.sampling, [attack])
    judges.check(how.judge)
    sets = [prompt_sets.load(spec, n=request.limit, seed=0) for spec in request.prompts]
    prompts = list({prompt.id: prompt for each in sets for prompt in each.prompts}.values())
    judges.refuse_contexts(how.judge, ((prompt.text, prompt.goal) for prompt in prompts))
    refuse_foreign(out, BEGUN, WRITTEN)
    model = base_in(out, request.model, same=how.engine.base_is_the_same)
    subjects = adhoc.subjects_of(request.model, request.adapters, model)
    record_base(out, model)
    attempts, replies = _replies(request, prompts, subjects, out)
    verdicts = judge_replies(replies, out / "verdicts.jsonl", how.judge, how.on, how.engine)
    cells = attacking.by_checkpoint(attack, how, replies, verdicts, attempts)
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
        }
        for r in replies
    ]
    write_text(out / "judged.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    rows = [{"arm": s.arm, "step": s.step, "attacks": {attack.name: cells[s.arm, None]}} for s in subjects]
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
    write_json(out / "attack.json", {"rows": rows, **card})
    write_text(out / "attack.md", attack_tables.markdown(rows, kind_of(how.judge) == "harm") + "\n")
    return {"rows": rows, **card}


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
