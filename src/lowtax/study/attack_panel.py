"""Attacks in the table of a study, by the headline judge and by the further ones, and how far the judges agree.

Judges are compared reply by reply, by whether they count it as safe, as on plain prompts (`panel`); intervals are over
the plain requests. The rule by which a judge of refusals counts an answer off the goal as no success is not in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtax.common.files import read_rows
from lowtax.common.records import Reply, Subject, Verdict
from lowtax.engines.settings import EngineSettings
from lowtax.judges.base import Text
from lowtax.judges.verdicts import Read, read_here
from lowtax.study import attacking, panel
from lowtax.study.attacking import Drawn
from lowtax.study.recipe import Recipe
from lowtax.study.referee import kind_of

if TYPE_CHECKING:
    from lowtax.study.study import Study

Verdicts = Mapping[str, Verdict]  # by reply id


def add(table: dict[str, Any], recipe: Recipe, subjects: Sequence[Subject], engine: EngineSettings, out: Path) -> None:
    """Judge the stored replies to attacks with every judge, and add the results to the table of a study.

    Fields: `attacks` of a row, by attack; `judges.JUDGE.attacks` of a row, the same by another judge, each with its
    `agreement` with the headline judge (`panel.agree`); `judges.JUDGE.attacks` of the table, the agreement over all
    models, each with the requests on which the two differ (`differ`).

    Raises:
        UserError: Replies are missing.
    """
    how, drawn = attacking.target(recipe, engine), attacking.stored(recipe, subjects, engine, out)
    if not drawn:
        return
    verdicts = attacking.judge(drawn, how, out)
    cells = attacking.results(drawn, verdicts, how)
    table["judge_kind"] = kind_of(recipe.judge)
    for row in table["rows"]:
        if of_row := attacking.of_row(cells, row):
            row["attacks"] = of_row
    for name in dict.fromkeys(recipe.judges):
        if name == recipe.judge:
            continue
        own = replace(how, judge=name)
        others = attacking.judge(drawn, own, out)
        of_judge = attacking.results(drawn, others, own)
        for row in table["rows"]:
            if of_row := attacking.of_row(of_judge, row):
                place = (row["arm"], row["checkpoint"])
                for attack, cell in of_row.items():
                    cell["agreement"] = panel.agree(pairs(drawn[attack], verdicts, others, place))
                row.setdefault("judges", {}).setdefault(name, {})["attacks"] = of_row
        table.setdefault("judges", {}).setdefault(name, {})["attacks"] = agreement(drawn, verdicts, others)


def agreement(drawn: Mapping[str, Drawn], first: Verdicts, second: Verdicts) -> dict[str, Any]:
    """Return the agreement of two judges on the replies to each attack, with the requests on which they differ."""
    both = {name: pairs(each, first, second) for name, each in drawn.items()}
    return {name: panel.agree(of_attack) | {"differ": panel.differ(of_attack)} for name, of_attack in both.items()}


def pairs(
    drawn: Drawn, first: Verdicts, second: Verdicts, place: tuple[str, str | None] | None = None
) -> list[panel.Pair]:
    """Return the verdicts of two judges on the replies to an attack, of all models or of one arm and checkpoint."""
    return [
        panel.Pair(drawn.attack.name, _request(r), r.goal or r.prompt, first[r.id], second[r.id])
        for r in drawn.replies
        if place in (None, (r.arm, r.checkpoint))
    ]


def judge_study(
    study: "Study", name: str | None = None, on: Text | None = None, again: bool = False, read: Read = read_here
) -> dict[str, tuple[list[Reply], dict[str, Verdict]]]:
    """Judge all stored replies of a study, those to attacks too: prompt set or attack -> replies, and their verdicts.

    Args:
        name: a judge other than the recipe's.
        on: a text other than the recipe's.
        again: judge anew, and replace the stored verdicts of this judge on this text.
        read: the way to judge replies, in this process or by workers.

    Raises:
        UserError: Replies are missing.
    """
    judged: dict[str, tuple[list[Reply], dict[str, Verdict]]] = {}
    for kind, results in study.judge(name, on, again, read).items():
        stored = read_rows(study.reply_sheets()[kind].path, Reply)
        judged[kind] = [stored[id_] for id_ in results], {id_: verdict for id_, (_, verdict) in results.items()}
    drawn = attacking.stored(study.recipe, study.subjects(), study.engine, study.out)
    how = attacking.target(study.recipe, study.engine)
    verdicts = attacking.judge(drawn, replace(how, judge=name or how.judge, on=on or how.on), study.out, again, read)
    for attack, each in drawn.items():
        judged[f"attack {attack}"] = each.replies, {reply.id: verdicts[reply.id] for reply in each.replies}
    return judged


def _request(reply: Reply) -> str:
    return reply.attacked.request if reply.attacked else reply.prompt_id
