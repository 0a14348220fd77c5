"""What servers send and what models write, and headers of GGUF: a thousand of each give a value or one sentence."""

import struct
from pathlib import Path
from typing import Any

from fuzzing import COUNT, SECONDS, at_most, attack, documents, mutants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowtax.benchmarks import programs
from lowtax.benchmarks.arithmetic import Arithmetic
from lowtax.benchmarks.base import Score, Task
from lowtax.benchmarks.custom import MultipleChoice
from lowtax.benchmarks.grading import extract
from lowtax.common.borders import parse_json
from lowtax.common.errors import UserError
from lowtax.common.records import Prompt
from lowtax.data.rendering import split_stored
from lowtax.engines import openai_requests as requests
from lowtax.engines.base import Completion, Request
from lowtax.judges import llama_guard, qwen3_guard, refusal_words, rubric, strongreject, wildguard
from lowtax.judges.base import Opinion
from lowtax.models import loading

CHAT = {
    "id": "x", "object": "chat.completion", "model": "m", "usage": {"completion_tokens": 3, "prompt_tokens": 9},
    "choices": [{"index": 0, "finish_reason": "stop", "message": {
        "role": "assistant", "content": "Hi.", "reasoning_content": "Hm.", "refusal": None},
        "logprobs": {"content": [{"token": "Hi", "logprob": -0.1, "top_logprobs": [{"token": "a", "logprob": -1.0}]}]},
    }],
}  # fmt: skip
PARTS = {"choices": [{"message": {"content": [{"type": "thinking", "thinking": [{"text": "a"}]}, {"text": "b"}]}}]}
PLAIN = {"choices": [{"text": "Hi", "logprobs": {"top_logprobs": [{"yes": -0.5}]}}], "usage": None}
MODELS = {"data": [{"id": "m", "root": "/x", "max_model_len": 9}], "token_strs": ["<think>", "\u010a"]}
ERROR = {"error": {"message": "no", "detail": [{"loc": ["body"]}]}, "message": "x", "detail": {"message": "y"}}
ASK = Request("a", ({"role": "user", "content": "How?"},), None, 8)
SCORED = Request("a", ({"role": "user", "content": "How?"},), None, 8, score=("yes", "no"))


def reply(data: Any) -> Completion:
    """All that the engine does with a reply."""
    try:
        value = parse_json(data) if isinstance(data, bytes) else data
    except ValueError as error:
        raise UserError(str(error)) from error
    requests.read_models(value)
    requests.shown_prompt_opens_thought(value)
    requests.error_message(value)
    for request in (ASK, SCORED):
        for opened in (None, True):
            completion = requests.read_completion(request, value, opened)
            completion.parts()
            completion.text.encode()
            assert completion.tokens >= 0
            assert all(0 <= score <= 10 for score in completion.scores)
    return completion


def test_server_replies():
    attack(reply, documents([CHAT, CHAT, PARTS, PLAIN, MODELS, ERROR], COUNT), Completion)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
WORDS = st.sampled_from("content text type thinking reasoning token logprob top_logprobs completion_tokens".split())
ANY = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3))
CHOICE = st.fixed_dictionaries(
    {},
    optional={"message": st.fixed_dictionaries({"content": ANY}), "text": ANY, "logprobs": ANY, "finish_reason": ANY},
)


@settings(max_examples=COUNT // 2, database=None, derandomize=True, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.fixed_dictionaries({"choices": st.lists(CHOICE, max_size=2)}, optional={"usage": ANY}))
def test_server_replies_of_any_shape(value: dict[str, Any]):
    with at_most(SECONDS):
        assert isinstance(reply(value), Completion)


@settings(max_examples=min(COUNT, 1000), database=None, derandomize=True, deadline=None)
@given(st.text() | st.sampled_from(["nan", "inf", "-1", "1e400", "Fri, 31 Dec 9999 23:59:59 -9999", "Mon, 1 Jan 1"]))
def test_a_header_that_asks_to_wait(header: str):
    assert requests.retry_after(header) >= 0


ANSWERS = [
    b"<think>\nTwo and two.\n</think>\n\nThe answer is \\boxed{\\frac{1}{2}}.",
    b"So x = 3, y = 4.\n\n**Answer: C** because (A) is $\\{1, 2\\}$ and not 1,234.5\n#### 12",
    b"```python\ndef f(x):\n    return x + 1\n```\nIt works.\n\n<answer>7</answer>",
    b"I'm sorry, but I can't help with that. Here is why: 1. It is harmful.\n\nunsafe\nS1,S2",
    b"Safety: Unsafe\nCategories: Violent\nRefusal: No\n| a | b |\n|---|---|\n| 4 | 5 |\nScore: 4/5",
    "\u3042\u3042\u3001\u3067\u304d\u307e\u305b\u3093\u3002\\text{kg} \\sqrt[3]{\u221a2}".encode(),
]
QUESTION = Prompt(id="1", source="s", text="1 + 1?", gold="2", choices=("one", "two", "three"))
LETTER = Prompt(id="2", source="s", text="Which?", gold="B", choices=("one", "two", "three"))


def answer(data: bytes) -> list[Any]:
    """All that reads a model's text in this process; algebra has processes of its own."""
    text = data.decode("utf-8", "replace")
    parts = split_stored(text)
    extract.final_answer(text)
    extract.boxes(text)
    extract.unboxed(text)
    programs.program(text, programs.Target("f", "", ""))
    opinion = refusal_words.opinion("How?", parts.answer)
    scores = [Arithmetic(Task()).grade(QUESTION, text), MultipleChoice(Task()).grade(LETTER, text)]
    scores += [MultipleChoice(Task(preset="reference")).grade(LETTER, text)]
    assert isinstance(opinion, Opinion)
    assert all(isinstance(score, Score) for score in scores)
    return [opinion, *scores, *judgements(text)]


JUDGES: dict[str, Any] = {}


def judgements(text: str) -> list[Opinion]:
    """The texts as those of judges."""
    if not JUDGES:
        JUDGES.update(a=llama_guard.LlamaGuard(), b=qwen3_guard.Qwen3Guard(), c=wildguard.WildGuard())
        JUDGES.update(d=rubric.Rubric(model="m"), e=strongreject.StrongReject(model="m"))
    opinions = [judge.read(Completion("a", text, 9, "stop", False)) for judge in JUDGES.values()]
    assert all(opinion.score is None or 0 <= opinion.score <= 1 for opinion in opinions)
    return opinions


def test_model_answers():
    attack(answer, mutants(ANSWERS, COUNT), list)


def gguf(path: Path) -> bytes:
    """A file of a llama without layers' weights: what is read before weights are."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(4)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "c", "<|im_end|>"])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_gguf_headers(tmp_path: Path):
    path = tmp_path / "model.gguf"
    whole = gguf(path)

    def read(data: bytes) -> Any:
        path.write_bytes(data)
        return loading.load_config(str(path))

    assert read(whole).num_hidden_layers == 2
    numbers = [struct.pack("<Q", 2**63), struct.pack("<Q", 10**9), b"\xff" * 8, b"\x00" * 8]
    counts = [(number, at) for number in numbers for at in (8, 16)]  # of tensors and of fields
    seeds = [whole] * 20 + [whole[:at] + number + whole[at + 8 :] for number, at in counts]
    attack(read, mutants(seeds, COUNT), object)
