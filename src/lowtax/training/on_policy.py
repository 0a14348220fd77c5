"""On-policy self-distillation: the model's own replies, and the frozen base below a safety instruction as the teacher.

OPSA (arXiv:2605.15239) trains a model on its own replies, token by token towards a frozen copy of it that reads a
privileged safety context. The paper's code is not published. What is ours: the instruction (`data.steering`), forward
KL over the whole vocabulary, replies that are drawn every `rollouts.every` steps for the batches of these steps, and
ordinary requests beside harmful ones, for which the base reads the request alone.

    OUT/rollouts/step-N.json    the replies of the steps from N on: tokens by example, and texts for people

They are written before the first of these steps, so that a killed run resumes with the replies that it had. The draw
is seeded by the run's seed and the step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowtax.common.cards import DrawnReplies, read_card
from lowtax.common.errors import UserError
from lowtax.common.files import write_json
from lowtax.common.log import say
from lowtax.common.records import row_id
from lowtax.data import chat
from lowtax.models import loading
from lowtax.training.assumptions import accepted
from lowtax.training.encoding import Example
from lowtax.training.objective import unwrap
from lowtax.training.packing import PACKED_ATTENTION

if TYPE_CHECKING:
    from lowtax.training.loop import TrainingRun

TOGETHER = 64  # replies that are drawn in one batch
# An index: for the number 1 torch copies the output weights of a frozen model for every row, 3 GB for the embedded one.
LAST = torch.tensor([-1])
AGAIN = "delete the folder rollouts to draw the replies again"


class Rollouts:
    """The replies of a run, which take the place of the completions of its examples.

    run: the run; its `examples` are replaced.

    Raises:
        UserError: Several processes train.
    """

    def __init__(self, run: "TrainingRun") -> None:
        if run.world > 1:
            raise UserError("The loss on_policy draws replies in one process: train without a launcher.")
        self.run, self.settings = run, run.settings.rollouts
        self.folder = run.out / "rollouts"
        self.made_by = row_id(run.job.describe())
        self.begun: int | None = None

    def refresh(self) -> None:
        """Draw or read the replies for the next step, if they are not there."""
        run = self.run
        begun = run.step - run.step % self.settings.every
        if self.begun == begun:
            return
        self.begun = begun
        steps = range(begun, min(begun + self.settings.every, run.total))
        members = list(dict.fromkeys(i for step in steps for i in run.batches[step]))
        path = self.folder / f"step-{begun}.json"
        stored = read_card(path, DrawnReplies, AGAIN) if path.exists() else {}
        same = stored.get("made_by") == self.made_by
        tokens = {int(i): ids for i, ids in stored["replies"].items()} if same else {}
        if not tokens.keys() >= set(members):
            tokens = self._draw(members, begun)
            text = {i: run.tokenizer.decode(ids) for i, ids in tokens.items()}
            self.folder.mkdir(exist_ok=True)
            write_json(path, {"made_by": self.made_by, "step": begun, "replies": tokens, "texts": text})
        for i in members:
            run.examples[i] = self._with_reply(run.examples[i], tokens[i])

    def _with_reply(self, example: Example, ids: list[int]) -> Example:
        teacher = example.prompt if example.teacher is None else example.teacher
        return replace(example, completion=ids, teacher=teacher, whole=ids[-1] in self.ends)

    @cached_property
    def ends(self) -> list[int]:
        """Return the tokens that end a reply."""
        tokenizer = self.run.tokenizer
        return sorted(chat.stops(tokenizer, loading.stop_tokens(unwrap(self.run.model), tokenizer)))

    def _draw(self, members: list[int], step: int) -> dict[int, list[int]]:
        """Return a reply of the model as it is to each example's prompt."""
        run = self.run
        say(f"  drawing {len(members)} replies of the model after step {step}")
        ordered = sorted(members, key=lambda i: (len(run.examples[i].prompt), i))
        tokens: dict[int, list[int]] = {}
        run.parameters.publish()
        gpu = [run.acc.device] if run.acc.device.type == "cuda" else []
        with _sampling(run.model), torch.random.fork_rng(devices=gpu):
            torch.manual_seed(int(row_id("rollouts", run.job.seed, step), 16) % 2**31)
            for start in range(0, len(ordered), TOGETHER):
                part = ordered[start : start + TOGETHER]
                tokens |= zip(part, self._replies([run.examples[i].prompt for i in part]), strict=True)
        return tokens

    def _replies(self, prompts: list[list[int]]) -> list[list[int]]:
        run, settings, ends = self.run, self.settings, self.ends
        pad = run.tokenizer.pad_token_id
        pad = ends[-1] if pad is None else pad
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=run.acc.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]).to(ids)
        last = {"logits_to_keep": LAST} if "logits_to_keep" in accepted(unwrap(run.model)) else {}
        drawn: Any = run.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            repetition_penalty=1.0,
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=pad,
            eos_token_id=ends,
            **last,
        )
        return [_until(line, ends) for line in drawn[:, width:].tolist()]


def _until(ids: list[int], ends: list[int]) -> list[int]:
    """Return the tokens up to the first that ends a turn, with it."""
    last = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: last + 1]


@contextmanager
def _sampling(model: nn.Module) -> Iterator[None]:
    """Let a model in training draw replies inside the block: in evaluation mode, with an attention that takes masks."""
    inner = unwrap(model)
    attention, training = inner.config._attn_implementation, model.training
    model.eval()
    if attention == PACKED_ATTENTION:
        inner.set_attn_implementation("sdpa")
    try:
        with torch.no_grad():
            yield
    finally:
        if attention == PACKED_ATTENTION:
            inner.set_attn_implementation(attention)
        model.train(training)
