"""Arms that start from other arms: their names, placements and order, and attacks written once for several arms.

`start: ARM` in an arm continues from the last checkpoint of ARM, which is trained or edited, with the same seed;
`start: ARM@checkpoint-N` from another one. `attacked` writes such arms for several parents at once: the entry
`identity: {of: [full, r1], data: [...]}` stands for the arms `full.identity` and `r1.identity`.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field, ValidationError

from lowtax.common.config import Section
from lowtax.common.errors import did_you_mean
from lowtax.common.names import CHECKPOINT, is_checkpoint
from lowtax.data.specs import Data
from lowtax.models.placement import Placement

if TYPE_CHECKING:
    from lowtax.study.recipe import Arm, EditedArm

    Trained: TypeAlias = Mapping[str, Arm]
    Edited: TypeAlias = Mapping[str, EditedArm]
BEFORE = "@"  # in `start`, before the name of a checkpoint
WHOLE = (
    "ablate",
    "lox",
    "prune_units",
    "subtract",
    "safe_lora",
)  # edits that make an adapter of a fully fine-tuned arm, on its weights
EXCLUSIVE = (("steps", "epochs"), ("checkpoint_steps", "checkpoint_epochs"))  # fields of `train`
BETWEEN = "."  # in the name of an attacked arm, before that of the attack


class Attack(Section):
    """A training that starts from each of several arms. The arm that ATTACK makes of ARM has the name ARM.ATTACK."""

    of: list[str] = Field(min_length=1, description="the arms that it starts from, trained or edited")
    mode: str | None = Field(None, description="placement as a mode string; that of the parent if absent")
    placement: Placement | None = Field(None, description="the same in full")
    train: dict[str, Any] = Field(
        default_factory=dict, description="fields of train that differ from those of the parent"
    )
    data: list[Data] | None = Field(None, description="training data, instead of the recipe's")
    methods: list[dict[str, Any]] = Field(default_factory=list, description="methods to train with")


def split(start: str) -> tuple[str, str | None]:
    """Return the arm and the checkpoint that `start` names; None is the last one. `ARM@60` means checkpoint-60."""
    arm, _, checkpoint = start.partition(BEFORE)
    return arm, f"{CHECKPOINT}{checkpoint}" if checkpoint.isdecimal() else checkpoint or None


def parent_of(arm: "Arm") -> str | None:
    """Return the name of the arm that an arm starts from; None if it starts from the base."""
    return None if arm.start is None else split(arm.start)[0]


# --- attacks, written out


def expanded(values: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a recipe with the arms that `attacked` stands for, and without it.

    Whatever is not well-formed stays, so that its own field refuses it.

    Raises:
        ValueError: An arm of that name exists.
    """
    attacked, arms = values.get("attacked"), values.get("arms") or {}
    if not isinstance(attacked, dict) or not attacked or not isinstance(arms, dict):
        return values
    try:
        attacks = {str(name): Attack.model_validate(attack) for name, attack in attacked.items()}
    except ValidationError:
        return values
    written = dict(arms)
    for name, attack in attacks.items():
        fields = attack.model_dump(exclude_unset=True, exclude={"of"})
        for of in attack.of:
            child = f"{of}{BETWEEN}{name}"
            if child in written:
                raise ValueError(f"attacked.{name} makes an arm {child!r}, which exists: give the attack another name")
            train = _merged(_train_of(of, arms, values.get("edited")), attack.train)
            written[child] = fields | {"start": of} | ({"train": train} if train else {})
    return {key: value for key, value in values.items() if key != "attacked"} | {"arms": written}


def _merged(train: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return settings of training with changes; of two exclusive ones that which the changes have stays."""
    stay = dict(train)
    for pair in EXCLUSIVE:
        for one, other in (pair, pair[::-1]):
            if changes.get(one) is not None and other not in changes:
                stay[other] = None  # also that of the recipe
    return {**stay, **changes}


def _train_of(name: str, arms: Mapping[str, Any], edited: Any) -> dict[str, Any]:
    """Return the `train` of an arm as it is written, of an edited one that of its source; empty if it has none."""
    arm = arms.get(name)
    if arm is None and isinstance(edited, dict):
        arm = arms.get(_field(edited.get(name), "of"))
    train = _field(arm, "train")
    return dict(train) if isinstance(train, dict) else {}


def _field(section: Any, name: str) -> Any:
    return section.get(name) if isinstance(section, dict) else getattr(section, name, None)


# --- starts


def completed(arms: "Trained", edited: "Edited") -> "dict[str, Arm]":
    """Return the arms of a recipe, those without a placement with that of their parent.

    Raises:
        ValueError: `start` names no arm, leads back to the arm itself, or names one that cannot be continued.
    """
    whole = dict(arms)
    for name in order(arms, edited):
        if name not in whole or whole[name].start is None:
            continue
        arm, where = whole[name], f"arms.{name}.start"
        parent, checkpoint = split(str(arm.start))
        if checkpoint is not None and not is_checkpoint(checkpoint):
            raise ValueError(f"{where}: {checkpoint!r} is no checkpoint; write {parent}@checkpoint-60 or {parent}@60")
        placement = whole[source_of(parent, edited)].where()
        if placement.parameters:
            raise ValueError(
                f"{where}: {parent!r} adapts {placement.parameters[0]}, and only linear modules can be continued"
            )
        if arm.mode is None and arm.placement is None:
            whole[name] = arm.model_copy(update={"placement": placement})
    for name, one in edited.items():
        _refuse_other_base(name, one, whole, edited)
    return whole


def order(arms: "Trained", edited: "Edited") -> list[str]:
    """Return the names of all arms, trained and edited, every arm after those that it is made of.

    Raises:
        ValueError: An arm starts from one that does not exist, or from itself through others.
    """
    names, path = list[str](), list[str]()

    def visit(name: str) -> None:
        if name in path:
            raise ValueError(
                f"arms.{name}.start: {' starts from '.join([*path[path.index(name) :], name])}, in a circle"
            )
        if name in names:
            return
        path.append(name)
        for parent in _parents(name, arms, edited):
            visit(parent)
        path.pop()
        names.append(name)

    for name in (*arms, *edited):
        visit(name)
    return names


def with_ancestors(only: str, arms: "Trained", edited: "Edited") -> list[str]:
    """Return the name of an arm after those of all arms that it is made of, in the order in which they are made."""
    names = {only}
    for name in reversed(order(arms, edited)):
        names |= set(_parents(name, arms, edited)) if name in names else set()
    return [name for name in order(arms, edited) if name in names]


def source_of(name: str, edited: "Edited") -> str:
    """Return the trained arm of a trained or edited arm: the arm itself, or the one that is edited."""
    return edited[name].of if name in edited else name


def whole_ancestor(name: str, arms: "Trained", edited: "Edited") -> str | None:
    """Return the arm whose whole weights are the base of an arm's adapters; None is the recipe's model."""
    if name in edited and is_whole(edited[name].of, arms):
        return edited[name].of
    parent = parent_of(arms[source_of(name, edited)])
    if parent is None:
        return None
    return parent if is_whole(parent, arms) else whole_ancestor(parent, arms, edited)


def is_whole(name: str, arms: "Trained") -> bool:
    """Test whether an arm is fine-tuned in full, so that its checkpoints are whole models."""
    return name in arms and arms[name].where().kind == "full"


def continues(name: str, arms: "Trained", edited: "Edited") -> bool:
    """Test whether an arm trains the factors of the LoRA that it starts from: both have one placement.

    An edited arm may have other ranks than its source; its files decide then.
    """
    parent = parent_of(arms[name])
    if parent is None:
        return False
    source = source_of(parent, edited)
    ours, theirs = arms[name].where(), arms[source].where()
    if "full" in (ours.kind, theirs.kind) or ours.model_dump() != theirs.model_dump():
        return False
    return (
        arms[source].start is None
        or whole_ancestor(source, arms, edited) == parent_of(arms[source])
        or continues(source, arms, edited)
    )


def children(arms: "Trained", edited: "Edited") -> Iterator[tuple[str, str, str | None]]:
    """Yield each arm that starts from another, the other, and its checkpoint; None is the last."""
    for name, arm in arms.items():
        if arm.start is not None:
            yield name, *split(arm.start)


def refuse_edits_of_whole(name: str, arm: "EditedArm") -> None:
    """Raise ValueError if an arm that edits make of a fully fine-tuned one has edits that need an adapter."""
    where = f"edited.{name}: {arm.of!r} is fine-tuned in full, and"
    for edit in arm.edits:
        method = edit.get("name")
        if method not in WHOLE:
            raise ValueError(f"{where} {method} edits adapters: name a LoRA arm")
        if method in ("lox", "subtract") and edit.get("k", 6 if method == "lox" else 0) == 0:
            raise ValueError(f"{where} {method} makes an adapter of its k strongest directions: set k to 1 or more")
    if arm.checkpoints == "all":
        raise ValueError(f"{where} only its last checkpoint is edited: remove checkpoints")


def _parents(name: str, arms: "Trained", edited: "Edited") -> list[str]:
    """Return the arms that an arm is made of.

    Raises:
        ValueError: An arm starts from one that does not exist.
    """
    if name in edited and name not in arms:
        return [of for of in edited[name].made_of() if of in arms]  # the recipe refuses others
    if (parent := parent_of(arms[name])) is None:
        return []
    if parent not in arms and (parent not in edited or edited[parent].of not in arms):
        hint = did_you_mean(parent, [*arms, *edited]).removesuffix(".")
        raise ValueError(f"arms.{name}.start: there is no arm {parent!r}; {hint}")
    return [parent]


def _refuse_other_base(name: str, arm: "EditedArm", arms: "Trained", edited: "Edited") -> None:
    """Raise ValueError if an edited arm is made of adapters of several bases."""
    if not all(of in arms for of in arm.made_of()):
        return  # the recipe refuses it
    bases = {of: whole_ancestor(of, arms, edited) for of in arm.made_of()}
    for of, base in bases.items():
        if base != bases[arm.of]:
            one, two = (f"the weights of {each!r}" if each else "the model" for each in (bases[arm.of], base))
            raise ValueError(
                f"edited.{name}: {arm.of!r} is an adapter on {one} and {of!r} on {two}, and an edit needs one base"
            )
