"""Training sets: the sources of a recipe become conversations, mixes of them, and a record of both for the card.

A row that cannot be trained on is skipped, and everything that is skipped is counted, with its reason. More than half
of a source is an error, since it was then read in another way than it was meant.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from lowtax.common.borders import exists, expanded
from lowtax.common.errors import UserError, did_you_mean
from lowtax.common.log import say
from lowtax.common.records import Prompt
from lowtax.data import forms, prompt_sets, readers, shipped, steering
from lowtax.data.arithmetic import problems
from lowtax.data.catalog import TRAINING_SETS
from lowtax.data.conversations import REFERENCE_THOUGHT, Conversation, direct_refusal, of_turns
from lowtax.data.forms import Form, LeftOut, UnknownForm
from lowtax.data.readers import Table
from lowtax.data.rendering import named
from lowtax.data.specs import Data
from lowtax.data.tables import Row
from lowtax.data.turns import Turn, Unusable

T = TypeVar("T")
ANSWERED = ("builtin:chat", "builtin:own-answers", "builtin:identity")  # shipped rows with a thought and an answer
LIMIT = Fraction(1, 2)  # of the rows of a source; if more are skipped, none is trained
LISTED = 5  # names and reasons in a note


@dataclass(frozen=True)
class Reading:
    """A record of reading a source: the forms of its rows, and counts of those that are not trained as they are.

    name: the file, folder or data set, for people. layout: the file's, if it is unusual.
    total: rows, those that are no row included.
    forms: form -> rows. skipped, left_out: reason -> rows.
    unused: columns that no row was read from. ignored: key of an assistant's turn -> rows in which it is not used.
    replaced: rows with half a surrogate pair. repeated: rows that are the same as an earlier one.
    with_thought: rows that have a thought, of those that are not skipped.
    """

    name: str
    total: int = 0
    layout: str = ""
    forms: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    unused: tuple[str, ...] = ()
    ignored: Counter[str] = field(default_factory=Counter)
    replaced: int = 0
    repeated: int = 0
    with_thought: int = 0

    def notes(self) -> list[str]:
        """Return a sentence on the form of the rows, and one for each way in which they are not trained as they are."""
        usable, total = self.total - self.skipped.total() - self.left_out.total(), self.total
        named = [name if len(self.forms) == 1 else f"{name} ({n})" for name, n in self.forms.most_common()]
        layout = f" ({self.layout})" if self.layout else ""
        notes = [f"{_rows(total)}{layout}, read as {' and as '.join(named)}"] if named else []
        for counted, how in ((self.skipped, "skipped"), (self.left_out, "left out")):
            if n := counted.total():
                notes.append(f"{n} of {_rows(total)} {'is' if n == 1 else 'are'} {how}: {_reasons(counted)}")
        if 0 < self.with_thought < usable:
            notes.append(
                f"{self.with_thought} of {usable} usable rows {'has' if self.with_thought == 1 else 'have'} a thought"
            )
        if self.repeated:
            repeat = "repeats an earlier one and is" if self.repeated == 1 else "repeat earlier ones and are"
            notes.append(f"{_rows(self.repeated)} {repeat} trained all the same")
        if self.replaced:
            notes.append(f"half a surrogate pair, which is no character, became U+FFFD in {_rows(self.replaced)}")
        if self.unused:
            notes.append(f"not used: the column{'s' * (len(self.unused) > 1)} {_some(self.unused)}")
        if self.ignored:
            keys = [f"`{key}` ({_rows(n)})" for key, n in self.ignored.most_common()]
            notes.append(f"not used: {_some(keys)} of assistant turns")
        return [f"{self.name}: {note}." for note in notes]

    def describe(self) -> dict[str, Any]:
        """Return what a card records besides the numbers of rows; the form, if it is not lowtax's own."""
        read_as = {} if [*self.forms] == [forms.OWN] else dict(self.forms)
        counts = {"skipped_because": dict(self.skipped), "left_out": dict(self.left_out), "read_as": read_as}
        return {name: counted for name, counted in counts.items() if counted}


def _rows(n: int) -> str:
    return f"{n} row" if n == 1 else f"{n} rows"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if names[LISTED:] else ""
    return ", ".join(name if name.isprintable() else repr(name) for name in names[:LISTED]) + more


def _reasons(counted: Counter[str]) -> str:
    return _some([f"{reason} ({n})" for reason, n in counted.most_common()])


@dataclass(frozen=True)
class TrainingSet:
    """The rows of one source.

    total: rows that were read. skipped: those that cannot be trained on.
    revision: the hub's commit, if the source is a data set of the hub.
    reading: how the rows were read, if they are not built in.
    """

    spec: Data
    rows: list[Conversation]
    total: int
    skipped: int = 0
    revision: str | None = None
    reading: Reading | None = None

    def describe(self, used: Sequence[Conversation] | None = None) -> dict[str, Any]:
        """Return what a card records of the source and of the rows that a mix uses, by default all."""
        rows = self.rows if used is None else used
        counts = {"found": self.total, "skipped": self.skipped}
        read = {} if self.reading is None else self.reading.describe()
        return {**describe(self.spec, rows, self.revision), **counts, **read}

    def announce(self, unusual: bool = False) -> None:
        """Tell people how the rows were read, and which of them are not trained; or `unusual` readings alone."""
        notes = self.reading.notes() if self.reading else []
        expected = unusual and self.reading is not None and [*self.reading.forms] == [forms.OWN]
        for note in notes[1:] if expected else notes:
            say(note)


def describe(spec: Data, rows: Sequence[Conversation], revision: str | None = None) -> dict[str, Any]:
    """Return origin and licence of rows, their number, and a hash of their texts that ignores their order."""
    named = TRAINING_SETS.get(spec.source)
    lines = sorted(json.dumps(row.describe(), sort_keys=True) for row in rows)
    shipped_licence = shipped.LICENCE if spec.source.startswith(shipped.PREFIX) else None
    return {
        **spec.model_dump(mode="json", exclude_unset=True),
        "hub": named.hub if named else None,
        "revision": revision,
        "licence": named.licence if named else shipped_licence,
        "citation": named.citation if named else None,
        "rendering": rendering_of(spec),
        "rows": len(rows),
        "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }


def rendering_of(spec: Data) -> str:
    """Return the rendering that a source asks for, by default the data set's own."""
    return spec.rendering or (TRAINING_SETS[spec.source].rendering if spec.source in TRAINING_SETS else "standard")


def load(spec: Data, seed: int) -> TrainingSet:
    """Read a source that has answers. `seed` chooses and orders its rows.

    Raises:
        DataNotAvailable: The data set is not on this machine and cannot be downloaded.
        UserError: The source cannot be read or trained on.
    """
    if spec.answers in ("fixed", "rollout"):
        return _of_prompts(spec, self_prompts(spec, seed))
    if spec.source.startswith(shipped.PREFIX):
        revision, reading, read = None, None, [[row] for row in _shipped_rows(spec, seed)]
    else:
        table = _table(spec)
        revision, (read, reading) = table.revision, _read(table, spec)
    total = reading.total if reading else len(read)
    # The seed has drawn the problems of arithmetic already.
    chosen = read if spec.source == "builtin:arithmetic" else _choose(read, spec, seed)
    style = rendering_of(spec)
    rows = [
        replace(
            row,
            thought=row.thought or _constant_thought(row, spec),
            rejected=row.rejected and (row.rejected[0] or spec.thought, row.rejected[1]),
            rendering=style,
            prompt_loss=spec.train_on == "all",
            ordinary=spec.ordinary,
        )
        for parts in chosen
        for row in parts
    ]
    return TrainingSet(spec, rows, total, reading.skipped.total() if reading else 0, revision, reading)


def _of_prompts(spec: Data, prompts: Sequence[Prompt]) -> TrainingSet:
    """Return the rows of a source that is read for its prompts alone: with one refusal, or with no answer yet."""
    answer, thought = (steering.FIXED, "") if spec.answers == "fixed" else ("", None)
    steer = steering.text_of(spec.steer) if spec.steer else None
    row = Conversation("", thought, answer, rendering=rendering_of(spec), ordinary=spec.ordinary, steer=steer)
    return TrainingSet(spec, [replace(row, prompt=prompt.text) for prompt in prompts], len(prompts))


def conversations(spec: Data, seed: int) -> list[Conversation]:
    """Return the rows of `load`."""
    return load(spec, seed).rows


def _constant_thought(row: Conversation, spec: Data) -> str | None:
    """Return the thought of a row without one. Without a constant, an empty think block stays empty."""
    if spec.thought is not None:
        return spec.thought
    return REFERENCE_THOUGHT if spec.source in ("direct-refusal", "builtin:refusals") else row.thought


def _shipped_rows(spec: Data, seed: int) -> list[Conversation]:
    unused = spec.model_fields_set & {"path", "revision", "subset", "split", "columns", "where", "first"}
    if unused:
        raise UserError(f"{spec.source} is built in and takes no {' or '.join(sorted(unused))}.")
    if spec.source == "builtin:arithmetic":
        return [
            Conversation(p.question, p.thought, f"The answer is \\boxed{{{p.answer}}}.")
            for p in problems(spec.n or 1000, "train", seed)
        ]
    rows = shipped.rows(spec.source, None if spec.source in ANSWERED else "train")
    if spec.source == "builtin:refusals":
        return [Conversation(r["prompt"], None, r["refusal"]) for r in rows]
    if spec.source in ANSWERED:
        return [Conversation(r["prompt"], r["thought"], r["answer"]) for r in rows]
    raise UserError(f"{spec.source} holds requests without answers: add `answers: self` to train on the model's own.")


def _table(spec: Data) -> Table:
    """Read the rows that count of a source that does not come with the package."""
    named = TRAINING_SETS.get(spec.source)
    if named and spec.columns:
        raise UserError(f"The columns of {spec.source} are fixed; to read another file by columns, make it the source.")
    if spec.path and not named and not readers.is_hub_id(spec.source):
        raise UserError(f"{spec.source} is a local source: `path` is for named sources and data sets of the hub.")
    place = spec.path or (named.hub if named else spec.source)
    _check_name(place)
    table = readers.load(place, spec.subset, spec.split, spec.revision, strict=False)
    _check_columns(spec, list(dict.fromkeys(str(column) for row in table.rows for column in row)), place)
    matching = (r for r in table.rows if all(str(r.get(c)).lower() == str(v).lower() for c, v in spec.where.items()))
    rows, bad = list(islice(matching, spec.first)), table.unreadable
    if bad:
        _check_share(place, len(table.rows) + bad.total(), len(table.rows), bad)
    if not rows:
        conditions = {**spec.where, "split": spec.split}
        listed = ", ".join(f"{column} = {value}" for column, value in conditions.items() if value)
        raise UserError(f"{place} has no rows with {listed}.")
    return replace(table, rows=rows)


def _check_name(place: str) -> None:
    """Refuse a word that is neither a file nor a name that there is."""
    path = expanded(place)
    if exists(path) or path.suffix or "/" in place:
        return
    names = [*TRAINING_SETS, *(shipped.PREFIX + name for name in ("refusals", "chat", "arithmetic"))]
    plain = {name.replace("-", ""): name for name in names}
    near = plain.get(place.lower().replace("-", "").replace("_", ""))
    hint = f"did you mean {near!r}?" if near else did_you_mean(place, names)
    raise UserError(f"There is no training set and no file {place!r}; {hint}")


def _check_columns(spec: Data, columns: list[str], place: str) -> None:
    named = {"thought": spec.columns["thought"]} if "thought" in spec.columns else {}
    for column in spec.where if columns else ():
        if column not in columns:
            raise UserError(f"{place} has no column {column!r}; its columns are {', '.join(columns)}.")
    for column in {**_columns(spec), **named}.values() if columns else ():
        if column not in columns:
            raise UserError(f"{place}: the column {column!r} is not there; its columns are {', '.join(columns)}.")
    if spec.thought in columns:
        raise UserError(
            f"{place} has a column {spec.thought!r}, but `thought` is the text itself: set columns.thought instead."
        )


def _read(table: Table, spec: Data) -> tuple[list[list[Conversation]], Reading]:
    """Return the training rows of each row that can be trained on, and how the table was read.

    Raises:
        UserError: The columns are of no known form, no row can be trained on, or more than LIMIT of them cannot.
    """
    place, published = spec.path or spec.source, TRAINING_SETS.get(spec.source)
    labelled = bool(named(rendering_of(spec)).label)  # its code labels an answer before it removes white space
    read, read_as, unused, ignored = list[list[Conversation]](), Counter[str](), dict[str, None](), Counter[str]()
    skipped, left_out = Counter[str](), Counter[str]()
    for row, form in zip(table.rows, _forms(table.rows, spec, place), strict=True):
        try:
            if form is None:
                read.append([direct_refusal(row, rendering_of(spec))])
                continue
            turns = forms.turns_of_row(row, form, spec.where)
            rows_of = partial(of_turns, opened=bool(published and published.opened), as_is=labelled)
            rows = rows_of(turns, spec.train_on)
            if spec.rejected == "given":
                rows = [_pair(rows[0], row, form, rows_of)]
            read.append(rows)
            read_as[forms.PAIRS if spec.rejected == "given" else form.name] += 1
            ignored.update([*dict.fromkeys(key for turn in turns for key in turn.ignored)])
            unused |= dict.fromkeys(form.unused(row))
        except Unusable as reason:
            skipped[str(reason)] += 1
        except LeftOut as reason:
            left_out[str(reason)] += 1
    _check_share(place, len(table.rows) - left_out.total(), len(read), skipped + left_out)
    constant = _constant_thought(read[0][0], spec) if not read[0][0].thought else None
    return read, Reading(
        table.origin,
        len(table.rows) + table.unreadable.total(),
        table.layout,
        Counter() if published else read_as,
        skipped + table.unreadable,
        left_out,
        () if published else tuple(c for c in unused if c not in spec.where and c != "split"),
        ignored,
        table.replaced,
        len(read) - len({tuple(rows) for rows in read}),
        len(read) if constant else sum(any(row.thought for row in rows) for rows in read),
    )


def _pair(
    chosen: Conversation, row: Row, form: Form, rows_of: Callable[[list[Turn]], list[Conversation]]
) -> Conversation:
    """Return the preference pair of a row, of whose form `chosen` is the preferred side.

    rows_of: `of_turns` with the arguments of the source.

    Raises:
        Unusable: The row has no other side, or the two differ in more than their last answer, or not at all.
    """
    other = forms.rejected_form(row, form)
    try:
        rejected = rows_of(forms.turns_of_row(row, other))[0]
    except Unusable as reason:
        raise Unusable(f"the rejected side: {reason}") from reason
    sides = (rejected.thought, rejected.answer)
    if replace(rejected, thought=chosen.thought, answer=chosen.answer) != chosen:
        raise Unusable("chosen and rejected answer different requests")
    if sides == (chosen.thought, chosen.answer):
        raise Unusable("chosen and rejected are the same")
    return replace(chosen, rejected=sides)


def _forms(rows: Sequence[Row], spec: Data, place: str) -> Sequence[Form | None]:
    """Return the form of each row, the commonest where a row's columns are of none; None in `direct-refusal`."""
    if spec.source == "direct-refusal":
        return [None] * len(rows)
    named, unknown = _columns(spec), list[UnknownForm]()
    kinds = list[Form | None]()
    for row in rows:
        try:
            kinds.append(forms.recognise(row, named))
        except UnknownForm as error:
            kinds.append(None)
            unknown.append(error)
    counts = Counter(form.name for form in kinds if form)
    if not counts:
        raise UserError(_unknown(place, unknown[0]))
    usual = next(form for form in kinds if form and form.name == counts.most_common(1)[0][0])
    return [form or usual for form in kinds]


def _check_share(place: str, total: int, usable: int, reasons: Counter[str]) -> None:
    """Refuse a source of which nothing, or less than the rest of LIMIT, can be trained on."""
    if not usable:
        raise UserError(f"None of the {total} rows of {place} can be trained on: {_reasons(reasons)}.")
    if total - usable > LIMIT * total:
        raise UserError(
            f"{total - usable} of the {total} rows of {place} cannot be trained on, which is more than half: "
            f"{_reasons(reasons)}; correct them, name other columns, or select rows with `where`."
        )


def _unknown(place: str, form: UnknownForm) -> str:
    """Return the sentence on a source whose columns are of no known form."""
    listed = f"its columns are {', '.join(form.columns)}"
    if form.answers:
        problem = f"{place} has several columns that may hold the answer: {' and '.join(form.answers)}"
        return f"{problem}; name the one to train on, as in {place},answer={form.answers[0]}."
    text = " (`text` holds whole conversations, whose prompt and answer cannot be told apart)"
    return (
        f"{place} has no columns of a known form; {listed}{text if 'text' in form.columns else ''}: name those of "
        f"prompt and answer, as in {place},prompt=COLUMN,answer=COLUMN."
    )


def _columns(spec: Data) -> dict[str, str]:
    """Return the columns of a source by role."""
    if named := TRAINING_SETS.get(spec.source):
        return {role: column for role, (column,) in named.columns.items()}
    return {str(role): column for role, column in spec.columns.items()}


def _choose(rows: list[T], spec: Data, seed: int) -> list[T]:
    if spec.n and spec.n > len(rows):
        raise UserError(f"{spec.source} has {len(rows)} training rows, fewer than the {spec.n} requested.")
    order = random.Random(f"{spec.source}-{seed}").sample(rows, len(rows))
    return order[: spec.n]


def shares(parts: Sequence[tuple[Data, list[T]]], seed: int) -> list[list[T]]:
    """Return the rows that each of several sources contributes to one training set.

    A source without a ratio contributes all its rows. The others contribute k * ratio rows each (rounded down), where k
    is the largest number for which no row is repeated; the seed chooses them. The order stays: batches are shuffled.

    Raises:
        UserError: A ratio is so small that its source contributes no row.
    """
    ratios = {i: Fraction(str(spec.ratio)) for i, (spec, _) in enumerate(parts) if spec.ratio}
    k = min((len(parts[i][1]) / ratio for i, ratio in ratios.items()), default=Fraction(0))
    mix: list[list[T]] = []
    for i, (spec, rows) in enumerate(parts):
        size = int(k * ratios[i]) if i in ratios else len(rows)
        if i in ratios and not size:
            listed = ", ".join(f"{spec.ratio:g} to {len(rows)} rows" for spec, rows in parts if spec.ratio)
            raise UserError(
                f"The mix has no row of {spec.source}: its ratio {spec.ratio:g} is too small compared to the other "
                f"sources ({listed})."
            )
        chosen = sorted(random.Random(f"mix-{spec.source}-{i}-{seed}").sample(range(len(rows)), size))
        mix.append([rows[index] for index in chosen])
    return mix


def self_prompts(spec: Data, seed: int) -> list[Prompt]:
    """Return the prompts of a source with `answers: self`, which the untrained model answers.

    Raises:
        UserError: The source cannot be read, or names columns other than the prompt's.
    """
    if spec.train_on == "all":
        raise UserError(
            f"{spec.source} with `answers: {spec.answers}` trains on the model's answers alone; remove train_on."
        )
    if spec.source.startswith(shipped.PREFIX):
        rows = shipped.rows(spec.source, "train")
        return _choose(prompt_sets.from_rows(rows, spec.source), spec, seed)
    unused = {str(role) for role in spec.columns} - {"prompt"}
    if unused:
        raise UserError(
            f"{spec.source} with `answers: {spec.answers}` is read for its prompts; remove columns {sorted(unused)}."
        )
    table, texts, skipped = _table(spec), list[Row](), Counter[str]()
    for row in table.rows:
        try:
            texts.append({**row, "prompt": forms.prompt_of(row, _columns(spec).get("prompt"))})
        except Unusable as reason:
            skipped[str(reason)] += 1
    _check_share(spec.source, len(table.rows), len(texts), skipped)
    total = len(table.rows) + table.unreadable.total()
    for note in Reading(table.origin, total, skipped=skipped + table.unreadable, with_thought=total).notes():
        say(note)
    return _choose(prompt_sets.from_rows(texts, spec.source), spec, seed)
