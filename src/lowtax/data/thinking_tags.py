"""Thinking tags: the words that families of models write around a thought, and where they divide a reply.

This is the one table of them. Chat templates show the format of most models (`lowtax.data.thoughts`); the table serves
what has no template: stored files, servers, templates without a place for thoughts, and `thinking_tags` in options.
docs/reference/thinking-tags.md has the rules and the table.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from lowtax.common.errors import UserError, did_you_mean

# What may be before the tag that begins a reply: white space, invisible characters, and the words that open a turn.
BLANK = re.compile(r"[\s\ufeff\u200b\u2060]*")
LEAD = r"(?:[\s\ufeff\u200b\u2060]|<[|\uff5c][^<>|\uff5c]{1,40}[|\uff5c]>|<s>|<bos>|(?i:assistant|model):?){0,9}?"
# Characters around a tag that decide what it is, and at the end of an answer that may be a tag: long texts take as long
# as they are long, and no longer.
NEAR, TAIL = 1000, 100
QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "«": "»", "「": "」"}
PROSE = re.compile(r"[,.;:!?)]|[ \t][a-z]")  # what follows a tag that is part of a sentence


@dataclass(frozen=True)
class Tags:
    """The words of a family around a thought and an answer.

    opening, closing: the texts around a thought. before, after: patterns of the texts around an answer.
    opens, closes: patterns of opening and closing, where they have several forms.
    nested: an opening within a thought has a separate closing.
    models: models that write them, for the documentation.
    """

    name: str
    opening: str
    closing: str
    models: str = ""
    before: str = ""
    after: str = ""
    opens: str = ""
    closes: str = ""
    nested: bool = True

    @property
    def open_pattern(self) -> str:
        """The pattern of an opening."""
        return self.opens or _words(self.opening)

    @property
    def close_pattern(self) -> str:
        """The pattern of a closing."""
        return self.closes or _words(self.closing)

    @property
    def hint(self) -> str:
        """A text that every closing has, by which most replies are done with at once."""
        return "final" if self.closes and not self.nested else "</" if "(?i:" in self.close_pattern else self.closing

    @cached_property
    def start(self) -> re.Pattern[str]:
        """The beginning of a reply that opens a thought."""
        return re.compile(f"{LEAD}(?:{self.open_pattern})")

    @cached_property
    def marks(self) -> re.Pattern[str]:
        """Every closing in a text, and where openings count, every opening (group 1)."""
        opening = self.open_pattern if self.nested and self.opening else "(?!)"
        return re.compile(f"({opening})|(?:{self.close_pattern})")

    @cached_property
    def edges(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """Patterns of what is removed at the beginning and at the end of an answer."""
        before, after = ("|".join(filter(None, (part, self.close_pattern))) for part in (self.before, self.after))
        return re.compile(rf"\s*(?:{before})"), re.compile(rf"(?:{after})\Z")


def _words(text: str) -> str:
    """Return the pattern of a text; names in angle brackets in any case, which models write as they like."""
    return f"(?i:{re.escape(text)})" if re.fullmatch(r"</?[a-z]+>", text) else re.escape(text)


HARMONY_FINAL = (
    r"(?:<\|end\|>\s*)?(?:<\|start\|>assistant)?<\|channel\|>final[^<>]*(?:<\|constrain\|>[^<>]*)?<\|message\|>"
)
FAMILIES = (
    Tags("think", "<think>", "</think>", "DeepSeek-R1, Qwen3, QwQ, GLM, SmolLM3, Nemotron, Phi-4 and most others"),
    Tags("magistral", "[THINK]", "[/THINK]", "Magistral, Ministral Reasoning"),
    Tags(
        "harmony",
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "gpt-oss",
        after=r"<\|return\|>|<\|end\|>",
        opens=r"(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)[^<>]*(?:<\|constrain\|>[^<>]*)?<\|message\|>",
        closes=HARMONY_FINAL,
        nested=False,
    ),
    Tags(
        "harmony",
        "analysis",
        "assistantfinal",
        "gpt-oss, decoded without special tokens",
        # No sentence begins with a small "analysis" and a letter; "analysis of ..." needs the closing as well.
        opens=r"(?:assistant)?(?:analysis|commentary)(?:(?=[^\W_]|[\"“«$\\¿¡])|(?=[\s\S]*assistantfinal))",
        nested=False,
    ),
    Tags("seed", "<seed:think>", "</seed:think>", "Seed-OSS"),
    Tags("gemma", "<|channel>thought", "<channel|>", "Gemma 4", after=r"<turn\|>"),
    Tags("medgemma", "<unused94>thought", "<unused95>", "MedGemma"),
    Tags("thinking", "<thinking>", "</thinking>", "Claude's prompts, Reflection, Hermes"),
    Tags("thought", "<thought>", "</thought>", "EXAONE Deep, Marco-o1, distilled Gemini"),
    Tags("thoughts", "<thoughts>", "</thoughts>", "prompts of reinforcement learning"),
    Tags("reasoning", "<reasoning>", "</reasoning>", "prompts of reinforcement learning"),
    Tags("reason", "<reason>", "</reason>", "prompts of reinforcement learning"),
    Tags("scratchpad", "<scratchpad>", "</scratchpad>", "prompts with a hidden scratchpad"),
    Tags(
        "open_thoughts",
        "<|begin_of_thought|>",
        "<|end_of_thought|>",
        "Sky-T1, OpenThinker",
        before=r"<\|begin_of_solution\|>",
        after=r"<\|end_of_solution\|>",
    ),
    Tags("kimi", "◁think▷", "◁/think▷", "Kimi-VL-Thinking, Kimi-k1.5"),
    Tags(
        "kimi_k3",
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        "Kimi-K3",
        before=r"<\|open\|>response<\|sep\|>",
        after=r"<\|close\|>response<\|sep\|>(?:<\|close\|>message<\|sep\|>)?",
    ),
    Tags(
        "command",
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        "Command-R7B, Command A reasoning",
        before=r"<\|START_(?:RESPONSE|TEXT)\|>",
        after=r"<\|END_(?:RESPONSE|TEXT)\|>",
    ),
    Tags("minimax", "<mm:think>", "</mm:think>", "MiniMax-M3"),
    Tags("hunyuan", "<think:opensource>", "</think:opensource>", "Hunyuan 3"),
    Tags("longcat", "<longcat_think>", "</longcat_think>", "LongCat-Flash-Thinking"),
    Tags("apertus", "<|inner_prefix|>", "<|inner_suffix|>", "Apertus"),
    Tags(
        "solar",
        "<|think|>",
        "<|end|><|begin|>assistant<|content|>",
        "Solar-Open",
        before=r"<\|content\|>",
        after=r"<\|end\|>",
        nested=False,
    ),
    Tags(
        "apriel",
        "Here are my reasoning steps:",
        "[BEGIN FINAL RESPONSE]",
        "Apriel",
        after=r"\[END FINAL RESPONSE\]",
        nested=False,
    ),
    Tags("granite", "Here is my thought process:", "Here is my response:", "Granite 3.2", nested=False),
    Tags("s1", "<|im_start|>think", "<|im_start|>answer", "s1, and the renderings `safety_tax`", nested=False),
)
NAMES = tuple(dict.fromkeys(tags.name for tags in FAMILIES))
TOKEN = re.compile(r"<[^<>\s]+>|\[/?[A-Z]+\]|◁/?think▷")
# Tags that may be special tokens; these stay in a reply. Not those of formats that need several tokens for a tag.
WHOLE = frozenset(
    tokens[0]
    for tags in FAMILIES
    for tokens in (TOKEN.findall(tags.opening), TOKEN.findall(tags.closing))
    if tags.nested and len(tokens) == 1
)


@lru_cache(maxsize=64)
def parse(text: str | None) -> tuple[Tags, ...]:
    """Return the tags that an option names: a family, or a pair as OPENING...CLOSING; all families if it is empty.

    Raises:
        UserError: It is neither.
    """
    text = (text or "").strip()
    if not text:
        return FAMILIES
    if text in NAMES:
        return tuple(tags for tags in FAMILIES if tags.name == text)
    for separator in ("...", "…", ",", None):
        opening, *closing = (part.strip() for part in text.split(separator, 1))
        if closing and opening and closing[0]:
            same = [tags for tags in FAMILIES if (tags.opening, tags.closing) == (opening, closing[0])]
            return tuple(same) or (Tags("own", opening, closing[0], nested=opening != closing[0]),)
    raise UserError(
        f"thinking_tags is {text!r}, which is neither a family nor a pair; {did_you_mean(text, NAMES)} A pair is "
        "written as '<reason>...</reason>'."
    )


def of_format(opening: str, closing: str, close: str, before_answer: str, ending: str) -> Tags:
    """Return the tags of a format that a chat template shows; of a known family, with all its forms.

    Args:
        opening, closing, before_answer, ending: as in `rendering.Markers`, without white space at their ends.
        close: the end of a thought alone.
    """
    before, after = re.escape(before_answer), re.escape(ending)
    for tags in FAMILIES:
        if tags.opening == opening or (not opening and tags.closing in closing):
            before, after = "|".join(filter(None, (before, tags.before))), "|".join(filter(None, (after, tags.after)))
            return replace(tags, before=before, after=after)
    closes = "|".join(re.escape(part) for part in dict.fromkeys((closing, close)) if part)
    return Tags("own", opening, close, "", before, after, closes=closes)


def ends_open(prompt: str) -> bool:
    """Return whether a prompt ends with the opening of any family."""
    return prompt.rstrip().endswith(tuple(tags.opening for tags in FAMILIES if not tags.opens))


def mentioned(texts: Sequence[str], prompt: str) -> Tags | None:
    """Return the family whose tags a prompt ends with, or that a template or vocabulary has; None if it has none."""
    pairs = [tags for tags in FAMILIES if tags.nested]
    for tags in pairs:
        if prompt.rstrip().endswith((tags.opening, tags.closing)):
            return tags
    return next((tags for tags in pairs if all(any(t in x for x in texts) for t in (tags.opening, tags.closing))), None)


# --- where a reply is divided


def split(text: str, opened: bool | None, own: Sequence[Tags], others: Sequence[Tags] = ()) -> tuple[str, str, bool]:
    """Return the thought and the answer of a reply, and False if its thought has no end (then the answer is empty).

    A thought ends at the first closing that belongs to it: not at that of a block within it, and not at one in
    quotation marks or in code. A closing after the answer is dropped.

    Args:
        opened: the prompt ended inside a thought; None if that is not known. Then a closing without an opening ends a
            thought that the prompt opened, unless it is at the very end or part of a sentence. If the prompt opened
            none, such a closing belongs to the answer: what is before it was said, too.
        own: the tags of the model, or those that may be in the text.
        others: tags with which a reply may begin as well.
    """
    begun = _begun(text, own if opened else [*own, *others])
    if begun:
        tags, at = begun
        return _inside(text[at:], tags)
    if opened:
        divided = _first((tags, _end(text, tags)) for tags in own)
        return _divided(text, *divided) if divided else (text.strip(), "", False)
    bare = _first((tags, _bare(text, tags)) for tags in own) if opened is None else None
    if bare and text[bare[1][1] :].strip():
        return _divided(text, *bare)
    for tags in own:
        text = _answer(text, tags)
    return "", text, True


def begun(text: str) -> Tags | None:
    """Return the family with whose tags a text begins, other than `<think>`; None if there is none."""
    begins = _begun(text, FAMILIES[1:])
    return begins[0] if begins else None


def _begun(text: str, families: Sequence[Tags]) -> tuple[Tags, int] | None:
    """Return the tags with which a reply begins, and where the thought begins."""
    blank = BLANK.match(text).end()  # type: ignore[union-attr]
    matches = [(tags, match.end()) for tags in families if tags.opening and (match := tags.start.match(text, blank))]
    return max(matches, key=lambda match: match[1], default=None)


def _inside(body: str, tags: Tags) -> tuple[str, str, bool]:
    """Divide a text that begins inside a thought."""
    end = _end(body, tags)
    if end is None:  # a model repeats the tag that its prompt or itself has written
        while again := tags.start.match(body):
            body = body[again.end() :]
        end = _end(body, tags)
    return _divided(body, tags, end) if end else (body.strip(), "", False)


def _divided(body: str, tags: Tags, at: tuple[int, int]) -> tuple[str, str, bool]:
    return body[: at[0]].strip(), _answer(body[at[1] :], tags), True


def _first(ends: Iterator[tuple[Tags, tuple[int, int] | None]]) -> tuple[Tags, tuple[int, int]] | None:
    """Return the earliest of several ends of a thought, with its tags."""
    return min(((tags, end) for tags, end in ends if end), key=lambda pair: pair[1], default=None)


def _end(body: str, tags: Tags) -> tuple[int, int] | None:
    """Return where the closing is that ends a thought which begins before `body`; None if it has no end."""
    depth = 1
    for mark in tags.marks.finditer(body) if tags.hint in body else ():
        if _quoted(body, *mark.span()):
            continue
        if mark[1] is None:
            depth -= 1
        elif tags.nested and not _in_prose(body, *mark.span()):
            depth += 1
        if depth == 0:
            return mark.span()
    return None


def _bare(text: str, tags: Tags) -> tuple[int, int] | None:
    """Return where the first closing is that has no opening before it."""
    depth = 0
    for mark in tags.marks.finditer(text) if tags.hint in text else ():
        if _quoted(text, *mark.span()) or _in_prose(text, *mark.span()):
            continue
        depth += 1 if mark[1] is not None else -1
        if depth < 0:
            return mark.span()
    return None


def _answer(text: str, tags: Tags) -> str:
    """Return an answer without the words around it, and without closings before and after it."""
    before, after = tags.edges
    start, end = 0, len(text.rstrip())
    while match := before.match(text, start, end):
        start = match.end()
    last = after.search(text, max(start, end - TAIL), end)
    if last and any(mark[1] is not None for mark in tags.marks.finditer(text, start, end)):
        last = None  # an opening in the answer, to which it belongs
    while last and not _quoted(text, *last.span()):
        end = last.start()
        while end > start and text[end - 1].isspace():
            end -= 1
        last = after.search(text, max(start, end - TAIL), end)
    return text[start:end].strip()


def _quoted(text: str, start: int, end: int) -> bool:
    """Return whether a tag is in quotation marks, or in code within a line: it is written about, not used."""
    if start and QUOTES.get(text[start - 1]) == text[end : end + 1]:
        return True
    near = max(0, start - NEAR)
    line = text[max(near, text.rfind("\n", near, start) + 1) : start]
    return line.count("`") % 2 == 1 and "`" in text[end : end + NEAR].partition("\n")[0]


def _in_prose(text: str, start: int, end: int) -> bool:
    """Return whether a tag is a word of a sentence, as in "close it by </think> at the end"."""
    return text[max(0, start - 1) : start] in (" ", "(") and bool(PROSE.match(text, end))
