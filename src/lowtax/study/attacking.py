"""The attacks of a study: which there are, what they make of its prompts, and how far they succeed.

Attacks that need no model make prompts, which every checkpoint answers in the plan of all other replies. Those that
talk depend on the target: they attack the base and the last checkpoint of every arm and seed, or all checkpoints where
the recipe says so. Files, beside those of the study:

    replies/attacks.jsonl                                  replies to prompts that attacks made
    attacks/NAME.{calls,replies,attempts}.jsonl            what attacker, judge and target wrote in a conversation
    verdicts/attacks.JUDGE.jsonl                           the verdicts on both, of every judge
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowtax.attacks.arena import Arena, Case, Engines
from lowtax.attacks.attempts import Attempt
from lowtax.attacks.base import Attack, Conversation, Wrapping, load
from lowtax.attacks.rates import Judged, Step, cell
from lowtax.common.errors import UserError
from lowtax.common.files import write_text
from lowtax.common.log import say
from lowtax.common.names import file_name
from lowtax.common.records import Prompt, Reply, Subject, Verdict
from lowtax.common.tables import Cell
from lowtax.data import prompt_sets
from lowtax.data.specs import PromptSet
from lowtax.engines import base as engines
from lowtax.engines.sampling import Sheet, replies_of
from lowtax.engines.settings import EngineSettings, Sampling
from lowtax.judges import base as judges
from lowtax.judges.base import Text
from lowtax.judges.verdicts import Read, judge_replies, read_here
from lowtax.models.adapters import check_base
from lowtax.study.recipe import Recipe
from lowtax.study.referee import JudgeReferee, kind_of

SHEET = "attacks"
Results = dict[str, dict[tuple[str, str | None], Cell]]  # attack -> arm and checkpoint -> its cell


@dataclass(frozen=True)
class Planned:
    """An attack of a recipe, and the prompt sets that it is used on."""

    attack: Attack
    specs: tuple[PromptSet, ...]

    def requests(self) -> list[Prompt]:
        """Return the plain requests, without repetitions."""
        rows = [prompt for spec in self.specs for prompt in prompt_sets.prompt_set(spec)]
        return list({prompt.id: prompt for prompt in rows}.values())


@dataclass(frozen=True)
class Target:
    """Everything that decides how a model answers an attack, and how its replies are judged."""

    sampling: Sampling
    engine: EngineSettings
    judge: str
    on: Text


def planned(recipe: Recipe) -> dict[str, Planned]:
    """Return the attacks of a recipe by name.

    Raises:
        UserError: A specification is not valid, or two attacks with other settings have one name.
    """
    plans: dict[str, Planned] = {}
    for spec in recipe.harmful:
        if spec.attack is None:
            continue
        attack = load(spec.attack)
        known = plans.get(attack.name)
        if known is not None and known.attack != attack:
            raise UserError(
                f"Two attacks of the recipe are called {attack.name!r} and have other settings: give one of them a "
                "`label`."
            )
        plans[attack.name] = Planned(attack, (*(known.specs if known else ()), spec))
    if any(spec.attack for spec in recipe.ordinary):
        raise UserError("An attack is for harmful prompts: remove `attack` from `ordinary`.")
    return plans


def check(recipe: Recipe) -> None:
    """Refuse attacks that would only fail later.

    Raises:
        UserError: An attack, its engine or its judge does not exist, or it cannot begin a reply.
    """
    for plan in planned(recipe).values():
        for name in (recipe.judge, *recipe.judges):
            judges.refuse_contexts(name, ((prompt.text, prompt.goal) for prompt in plan.requests()))
        if isinstance(plan.attack, Conversation):
            engines.find(plan.attack.attacker_engine)
            judges.check(plan.attack.judge or recipe.judge)
    check_decoding(recipe.sampling, [plan.attack for plan in planned(recipe).values()])


def check_decoding(sampling: Sampling, attacks: Iterable[Attack]) -> None:
    """Refuse a decoding mode, which writes thoughts itself, beside an attack that writes them too, or that talks.

    Raises:
        UserError: There is one.
    """
    if sampling.decoding == "default":
        return
    for attack in attacks:
        if attack.conversation or attack.name in ("prefill", "flawed_thought"):
            raise UserError(
                f"The attack {attack.name} cannot be used with decoding {sampling.decoding}, which writes thoughts "
                "itself: set `sampling.decoding` to default."
            )


def sheet(recipe: Recipe, out: Path) -> Sheet | None:
    """Return the sheet of the prompts that attacks without a model make; None if there are none."""
    prompts = [
        prompt
        for plan in planned(recipe).values()
        if isinstance(plan.attack, Wrapping)
        for prompt in plan.attack.prompts(plan.requests())
    ]
    return Sheet(out / "replies" / f"{SHEET}.jsonl", prompts, recipe.drawn()) if prompts else None


def target(recipe: Recipe, engine: EngineSettings) -> Target:
    """Return how the models of a study answer attacks."""
    return Target(recipe.drawn(), engine, recipe.judge, recipe.judged_text)


def conversations(recipe: Recipe) -> list[tuple[Conversation, Planned]]:
    """Return the attacks of a recipe that talk to the target."""
    return [(plan.attack, plan) for plan in planned(recipe).values() if isinstance(plan.attack, Conversation)]


def converse(recipe: Recipe, subjects: Sequence[Subject], engine: EngineSettings, out: Path) -> None:
    """Run every attack that talks, on the models that it attacks. What is stored is not repeated."""
    loaded = Engines()
    for attack, plan in conversations(recipe):
        talk(attack, plan.requests(), attacked(subjects, attack), target(recipe, engine), out / "attacks", loaded)


def attacked(subjects: Sequence[Subject], attack: Conversation) -> list[Subject]:
    """Return the models that an attack talks to: the base, and the last checkpoint of every arm and seed, or all."""
    if attack.checkpoints == "all":
        return list(subjects)
    last: dict[tuple[str, int | None], Subject] = {}
    for subject in subjects:
        known = last.get((subject.arm, subject.seed))
        if known is None or subject.step >= known.step:
            last[subject.arm, subject.seed] = subject
    return list(last.values())


def talk(
    attack: Conversation,
    requests: Sequence[Prompt],
    subjects: Sequence[Subject],
    how: Target,
    folder: Path,
    loaded: Engines | None,
) -> tuple[list[Attempt], dict[str, Reply]]:
    """Run one attack on models, write its attempts, and return them with the target's replies by id.

    Models with other weights of their base are attacked one after the other, so that one is in memory at a time.

    Args:
        loaded: the engines; None if everything is stored.

    Raises:
        UserError: An adapter does not fit, or something is not stored that has to be.
    """
    referee = JudgeReferee(attack.judge or how.judge, how.engine)
    arena = Arena(attack, how.sampling, how.engine, referee, folder, loaded)
    if loaded is not None:
        say(f"attacking {len(subjects)} models by {attack.name}: {len(requests)} requests each")
    attempts = list[Attempt]()
    for model in dict.fromkeys(subject.model for subject in subjects):
        of_model = [subject for subject in subjects if subject.model == model]
        if loaded is not None and not how.engine.base_is_the_same:
            for subject in of_model:
                if subject.adapter is not None:
                    check_base(Path(subject.adapter), subject.model)
        attempts += attack.run([Case(subject, prompt) for subject in of_model for prompt in requests], arena)
    if loaded is not None:
        path = folder / f"{file_name(attack.name)}.attempts.jsonl"
        write_text(path, "".join(row.model_dump_json() + "\n" for row in attempts))
    used = {attempt.reply for attempt in attempts}
    return attempts, {id_: reply for id_, reply in arena.replies().items() if id_ in used}


@dataclass(frozen=True)
class Drawn:
    """The stored replies to one attack, and the attempts of one that talks."""

    attack: Attack
    replies: list[Reply]
    attempts: list[Attempt]


def stored(recipe: Recipe, subjects: Sequence[Subject], engine: EngineSettings, out: Path) -> dict[str, Drawn]:
    """Return the stored replies to every attack, by attack.

    Raises:
        UserError: Replies are missing.
    """
    how, of_prompts, drawn = target(recipe, engine), sheet(recipe, out), dict[str, Drawn]()
    replies = [reply for _, reply in replies_of(of_prompts, subjects, engine).values()] if of_prompts else []
    for name, plan in planned(recipe).items():
        if isinstance(plan.attack, Conversation):
            models = attacked(subjects, plan.attack)
            attempts, of_attack = talk(plan.attack, plan.requests(), models, how, out / "attacks", None)
            drawn[name] = Drawn(plan.attack, [*of_attack.values()], attempts)
        else:
            own = [r for r in replies if r.attacked is not None and r.attacked.attack == name]
            drawn[name] = Drawn(plan.attack, own, [])
    return drawn


def judge(
    drawn: Mapping[str, Drawn], how: Target, out: Path, again: bool = False, read: Read = read_here
) -> dict[str, Verdict]:
    """Return the verdicts of one judge on the replies to all attacks, by reply id. Stored ones are reused.

    Args:
        again: judge anew, and replace the stored verdicts of this judge on this text.
        read: the way to judge replies, in this process or by workers.
    """
    path = out / "verdicts" / f"{SHEET}.{file_name(how.judge)}.jsonl"
    replies = list({reply.id: reply for each in drawn.values() for reply in each.replies}.values())
    return judge_replies(replies, path, how.judge, how.on, how.engine, again=again, read=read) if replies else {}


def results(drawn: Mapping[str, Drawn], verdicts: Mapping[str, Verdict], how: Target) -> Results:
    """Return the success of each attack on each checkpoint, by the verdicts of one judge."""
    return {name: by_checkpoint(d.attack, how, d.replies, verdicts, d.attempts) for name, d in drawn.items()}


def by_checkpoint(
    attack: Attack,
    how: Target,
    replies: Sequence[Reply],
    verdicts: Mapping[str, Verdict],
    attempts: Sequence[Attempt] = (),
) -> dict[tuple[str, str | None], Cell]:
    """Return the success of an attack by arm and checkpoint."""
    harm, scores = kind_of(how.judge) == "harm", {a.reply: a.score for a in attempts if a.reply}
    places = [(r.arm, r.checkpoint) for r in replies] + [(a.arm, a.checkpoint) for a in attempts]
    cells = {}
    for place in dict.fromkeys(places):
        rows = [Judged(r, verdicts[r.id], scores.get(r.id)) for r in replies if (r.arm, r.checkpoint) == place]
        steps = [
            Step(a.seed or 0, a.request, a.attacker_tokens, a.problem)
            for a in attempts
            if (a.arm, a.checkpoint) == place
        ]
        cells[place] = cell(rows, attack.queries, harm, steps)
    return cells


def of_row(cells: Results, row: Mapping[str, Any]) -> dict[str, Cell]:
    """Return the cells of one row of the table, by attack."""
    place = (row["arm"], row["checkpoint"])
    return {name: by_place[place] for name, by_place in cells.items() if place in by_place}
