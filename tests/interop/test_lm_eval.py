"""Our benchmarks in lm-evaluation-harness, our engines as its model, and its grades beside ours.

What needs lm_eval is skipped where it is not installed; the settings and scores of our tasks are tested without it.
"""

import gzip
import importlib
import json
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from places import PUBLISHED
from tiny import make_model

from lowtax.benchmarks.base import TABLE, Task, load
from lowtax.benchmarks.grading import letters
from lowtax.cli import harness as cli_tasks
from lowtax.common.errors import UserError
from lowtax.common.files import read_rows
from lowtax.common.records import Prompt, Reply, Subject
from lowtax.engines.sampling import Sheet, collect
from lowtax.engines.settings import EngineSettings, Sampling
from lowtax.interop import lm_eval_tasks
from lowtax.models.loading import load_model, load_tokenizer

OUTPUTS = PUBLISHED / "outputs_gsm8k_gpt_oss_120b.jsonl.gz"
GPQA = "tasks/gpqa/cot_zeroshot/_gpqa_cot_zeroshot_yaml"
pytestmark = pytest.mark.filterwarnings("ignore")  # of lm_eval and what it imports


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    """lm_eval, whose imports warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("lm_eval", reason="needs lm_eval: pip install 'lowtax[lm-eval]'")
        importlib.import_module("lm_eval.tasks")
        importlib.import_module("lowtax.interop.lm_eval")
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory) -> Path:
    """An adapter that changes much."""
    torch.manual_seed(0)
    model = get_peft_model(load_model(str(tiny)), LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False))
    model.save_pretrained(folder := tmp_path_factory.mktemp("adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(tiny)}))
    return folder


# --- the tasks


def read_yaml(path: Path) -> dict:
    class Loader(yaml.SafeLoader):
        """YAML with lm-eval's tag for functions."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    return yaml.load(path.read_text(), Loader)


def test_every_benchmark_is_a_task():
    tasks = {path.stem: read_yaml(path) for path in lm_eval_tasks.FOLDER.glob("*.yaml")}
    assert set(tasks) == set(TABLE)
    assert {name: (task["task"], task["dataset_kwargs"]) for name, task in tasks.items()} == {
        name: (f"lowtax_{name}", {"exam": name}) for name in TABLE
    }
    code = {name for name, task in tasks.items() if task.get("unsafe_code")}
    assert code == {"humaneval", "humaneval_plus", "mbpp", "mbpp_plus"}


def test_draws_as_a_recipe_does():
    shared = read_yaml(lm_eval_tasks.FOLDER / "_exam")["generation_kwargs"]
    ours = Task().sampling
    assert shared == {
        "do_sample": True,
        "temperature": ours.temperature,
        "top_p": ours.top_p,
        "max_gen_toks": ours.max_new_tokens,
        "until": [],
    }


def test_settings_choose_the_exam():
    docs = lm_eval_tasks.exam("arithmetic", {"n": 3, "seed": 7}, pretrained="x", version=1)["test"]
    rows = load("arithmetic", Task(n=3, seed=7)).rows()
    assert [(doc["id"], doc["prompt"], doc["gold"]) for doc in docs] == [(row.id, row.text, row.gold) for row in rows]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sed": 1}, "unknown key 'sed'; did you mean 'seed'"),
        ({"sampling": {"temperature": 0}}, "give --gen_kwargs"),
        ({"n": 0}, "n: Input should be greater than 0"),
    ],
)
def test_wrong_settings_are_a_sentence(settings, said):
    with pytest.raises(UserError, match=re.escape(said)):
        lm_eval_tasks.exam("arithmetic", settings)


def shares(doc: dict, *replies: str) -> dict[str, float]:
    return lm_eval_tasks.shares(doc, lm_eval_tasks.grades([list(replies)], [doc]))


def test_scores_are_shares_of_all_replies():
    [doc] = lm_eval_tasks.exam("arithmetic", {"n": 1})["test"]
    right = f"Hm.</think>\\boxed{{{doc['gold']}}}"
    found = shares(doc, right, "<think>\\boxed{1}", "Hm.</think>none", f"<think>{right}")
    assert found == {"acc": 0.5, "unfinished": 0.25, "no_answer": 0.25}
    assert shares(doc, "") == {"acc": 0, "unfinished": 1, "no_answer": 0}
    # A reply without a tag is an answer, unless the prompt has opened the thought.
    bare = f"\\boxed{{{doc['gold']}}}"
    assert shares(doc, bare) == {"acc": 1, "unfinished": 0, "no_answer": 0}
    [doc] = lm_eval_tasks.exam("arithmetic", {"n": 1, "opened": True})["test"]
    assert shares(doc, bare) == {"acc": 0, "unfinished": 1, "no_answer": 0}


def test_every_reply_is_graded_with_its_question():
    docs = list(lm_eval_tasks.exam("arithmetic", {"n": 3})["test"])
    replies = [[f"</think>\\boxed{{{doc['gold']}}}", "</think>\\boxed{-99999}"] for doc in docs]
    grades = [[json.loads(grade) for grade in several] for several in lm_eval_tasks.grades(replies, docs)]
    assert [[grade["extracted"] for grade in several] for several in grades] == [[d["gold"], "-99999"] for d in docs]
    assert [[grade["correct"] for grade in several] for several in grades] == [[True, False]] * 3


def test_the_command_prints_the_folder(capsys):
    cli_tasks.tasks_path()
    assert Path(capsys.readouterr().out.strip()) == lm_eval_tasks.FOLDER


def test_without_lm_eval_the_command_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lowtax.interop.lm_eval", raising=False)
    app = typer.Typer()
    app.command(context_settings=cli_tasks.LM_EVAL_SETTINGS)(cli_tasks.lm_eval)
    with pytest.raises(UserError, match=r"pip install 'lowtax\[lm-eval\]'"):
        app(["run", "--model", "lowtax"], standalone_mode=False)


# --- the harness with our tasks and with its own


def manager(harness, *folders, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return harness.tasks.TaskManager(
            include_path=[str(lm_eval_tasks.FOLDER), *map(str, folders)],
            include_defaults=False,
            metadata={"lowtax": settings},
        )


def evaluated(harness, model, tasks, found, **options):
    return harness.simple_evaluate(model=model, tasks=tasks, task_manager=found, bootstrap_iters=0, **options)


def replaying(harness, by_question: dict[str, str]):
    """A model that says what is stored for the question in the prompt."""

    class Replay(harness.api.model.LM):
        loglikelihood = loglikelihood_rolling = None

        def generate_until(self, requests):
            return [next(by_question[q] for q in by_question if q in request.args[0]) for request in requests]

    return Replay()


def stored(wanted: int, boxed: bool = False) -> list[dict[str, str]]:
    if not OUTPUTS.exists():
        pytest.skip(f"{OUTPUTS.name} is not here: stored answers of a reasoning model")
    with gzip.open(OUTPUTS, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return [row for row in rows if "boxed" in row["response"] or not boxed][:wanted]


def theirs(harness, name: str, folder: Path, file: Path) -> Path:
    """A task of lm-eval itself over a local file."""
    home = Path(harness.__file__).parent / "tasks"
    data = {"data_files": dict.fromkeys(("train", "test"), str(file)), "cache_dir": str(folder / "cache")}
    task = {"include": str(home / name), "task": "theirs", "dataset_path": "json", "dataset_kwargs": data}
    folder.mkdir(parents=True)
    (folder / "theirs.yaml").write_text(yaml.safe_dump(task | {"dataset_name": None}))
    return folder


def compared(harness, tmp_path, ours: str, name: str, rows: list[dict], columns: dict[str, str]):
    """Per row: our benchmark's score, our task's in the harness, and the sample of theirs by filter."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({new: row[old] for new, old in columns.items()}) + "\n" for row in rows))
    replies = {row["question"]: row["response"] for row in rows}
    tasks = manager(harness, theirs(harness, name, tmp_path / "tasks", file), file=str(file))
    out = evaluated(harness, replaying(harness, replies), [f"lowtax_{ours}", "theirs"], tasks, num_fewshot=0)["samples"]
    exam = load(ours, Task(file=str(file)))
    alone = {row.text: exam.grade(row, next(r for q, r in replies.items() if q in row.text)) for row in exam.rows()}
    inside = {sample["doc"]["prompt"]: sample for sample in out[f"lowtax_{ours}"]}
    assert len(alone) == len(inside) == len(rows)
    found = []
    for number, row in enumerate(rows):
        prompt = next(text for text in alone if row["question"] in text)
        filters = {s["filter"]: s for s in out["theirs"] if s["doc_id"] == number}
        found.append((row, alone[prompt], inside[prompt], filters))
    return found


def why_flexible_misses(found: str, gold: str) -> str:
    """Why the last thing that looks like a number is not the gold one."""
    digits = found.strip("$.").replace(",", "")
    if digits != gold and re.fullmatch(rf"{gold}\.0+", digits):
        return "decimal zeros"
    return "split at a separator" if len(gold) > 3 and gold.endswith(digits) else "another number comes later"


def test_gsm8k_is_graded_as_by_lm_eval_but_for_explained_answers(harness, tmp_path):
    """Our task in the harness, our benchmark, and lm-eval's gsm8k on the same 50 stored answers."""
    found = compared(
        harness, tmp_path, "gsm8k", "gsm8k/gsm8k.yaml", stored(50), {"question": "question", "answer": "answer"}
    )
    assert [inside["acc"] for _, _, inside, _ in found] == [float(score.correct) for _, score, _, _ in found]
    # No answer has `####`, which the model was not told to write: the strict filter finds nothing.
    assert {filters["strict-match"]["filtered_resps"][0] for *_, filters in found} == {"[invalid]"}
    apart = [
        (row["index"], why_flexible_misses(filters["flexible-extract"]["filtered_resps"][0], row["gold"]))
        for row, score, _, filters in found
        if score.correct != filters["flexible-extract"]["exact_match"]
    ]
    assert {why for _, why in apart} == {"another number comes later", "split at a separator", "decimal zeros"}
    assert all(score.correct for row, score, _, _ in found if row["index"] in dict(apart))


def test_preset_reference_is_lm_eval_s_flexible_filter(harness):
    flexible = harness.filters.extraction.RegexFilter(group_select=-1, regex_pattern="(-?[$0-9.,]{2,})|(-?[0-9]+)")
    exam = load("gsm8k", Task(preset="reference"))
    for row in stored(400):
        prompt = Prompt(id="x", source="gsm8k", text="", gold=row["gold"])
        found = flexible.apply([[row["response"]]], [{}])[0][0]
        assert exam.grade(prompt, row["response"]).correct == (re.sub(r"[,$]|\.$", "", found) == row["gold"])


def test_aime_is_graded_as_by_lm_eval_but_for_spelling(harness, tmp_path):
    """On 50 stored answers with a box. lm-eval compares the spelling of the box, we the number in it."""
    columns = {"Problem": "question", "Answer": "gold", "ID": "index"}
    found = compared(harness, tmp_path, "aime24", "aime/aime24.yaml", stored(50, boxed=True), columns)
    assert [inside["acc"] for _, _, inside, _ in found] == [float(score.correct) for _, score, _, _ in found]
    apart = [
        (score, re.findall(r"\\boxed\{(.*)\}", row["response"])[-1])
        for row, score, _, filters in found
        if score.correct != filters["none"]["exact_match"]
    ]
    assert apart
    assert all(score.correct and not re.fullmatch(r"(\\\$)?\d+", box) for score, box in apart)


@pytest.mark.parametrize(
    ("reply", "ours", "strict", "flexible"),
    [
        ("The answer is (C).", "C", "(C)", "(C)"),
        ("\\boxed{C}", "C", "[invalid]", "[invalid]"),
        ("Final Answer: \\boxed{\\text{(C)}}", "C", "[invalid]", "(C)"),
        ("Answer: C.", "C", "[invalid]", "(C)"),
        ("The correct answer is C.", "C", "[invalid]", "[invalid]"),
        ("Neither (A) nor (B). So \\boxed{C}, not (D).", "C", "[invalid]", "(D)"),
    ],
)
def test_letters_are_found_as_by_lm_eval_s_gpqa_but_for_these(harness, reply, ours, strict, flexible):
    task = yaml.safe_load((Path(harness.__file__).parent / GPQA).read_text().replace("!function", ""))
    doc = {"choices": ["red light", "blue light", "green light", "no light"]}
    found = {}
    for each in task["filter_list"]:
        settings = dict(each["filter"][0])
        kind = harness.api.registry.get_filter(settings.pop("function"))
        found[each["name"]] = kind(**settings).apply([[reply]], [doc])[0][0]
    assert found == {"strict-match": strict, "flexible-extract": flexible}
    assert letters.letter(reply, doc["choices"])[0] == ours


# --- our engines in the harness


def lowtax_model(**settings):
    from lowtax.interop.lm_eval import Lowtax

    return Lowtax(**{"precision": "float32"} | settings)


def test_replies_are_those_of_lowtax_evaluate(harness, tiny, adapter, tmp_path):
    how = Sampling(max_new_tokens=24, temperature=0.6, top_p=0.95, samples=2, seed=5)
    sheet = Sheet(tmp_path / "answers.jsonl", load("arithmetic", Task(n=4)).rows(), how)
    arm = Subject("r1", 0, "checkpoint-1", 1, str(tiny), str(adapter), "x")
    collect([sheet], [arm], EngineSettings("hf", "float32", 8), tmp_path)
    want = {(reply.prompt_id, reply.sample): reply for reply in read_rows(sheet.path, Reply).values()}

    tasks = manager(harness, n=4)
    task = tasks.load(["lowtax_arithmetic"])["tasks"]["lowtax_arithmetic"]
    task.set_config("repeats", 2)
    model = lowtax_model(pretrained=str(tiny), adapter=str(adapter), seed=5, thoughts=True, batch_size=3)
    out = evaluated(harness, model, [task], tasks, gen_kwargs="max_gen_toks=24", apply_chat_template=True)
    for sample in out["samples"]["lowtax_arithmetic"]:
        replies = sample["resps"][0]
        assert len(set(replies)) == 2
        for number, text in enumerate(replies):
            assert text == f"<think>\n{want[sample['doc']['id'], number].thought}"
    assert out["results"]["lowtax_arithmetic"]["unfinished,lowtax"] == 1


def instances(harness, kind: str, arguments: list[tuple]) -> list:
    return [harness.api.instance.Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "It is"},
]


def test_a_conversation_reaches_the_engine_as_it_is(harness, tmp_path):
    (tmp_path / "echo.py").write_text(
        "from lowtax.engines.base import Completion\n"
        "class Echo:\n"
        "    def __init__(self, *_): pass\n"
        "    def generate(self, requests):\n"
        "        for r in reversed(requests):\n"
        "            text = f'a STOP b</think>{r.messages}{r.prefix} {r.temperature} {r.top_k} {r.max_new_tokens}'\n"
        "            text += ' STOP'\n"
        "            finish = 'failed' if r.top_k == 9 else 'stop'\n"
        "            yield Completion(r.id, text * (finish == 'stop'), 3, finish, True, 'no room')\n"
    )
    model = lowtax_model(pretrained="x", engine=f"{tmp_path / 'echo.py'}:Echo")
    drawn = {"do_sample": True, "top_k": 3, "until": [" STOP", ""], "max_gen_toks": 5}
    asked = [
        (model.apply_chat_template(CHAT, False), drawn),
        ("Hi", {"until": "x"}),
        ("Hi", {"top_k": 9, "until": []}),
    ]
    chat, plain, failed = model.generate_until(instances(harness, "generate_until", asked))
    assert chat == f"{tuple(CHAT[:2])}It is 1.0 3 5"
    assert plain.startswith("({'role': 'user', 'content': 'Hi'},) 0.0 0 32768")
    assert failed == ""
    whole = lowtax_model(pretrained="x", engine=f"{tmp_path / 'echo.py'}:Echo", thoughts=True)
    [text] = whole.generate_until(instances(harness, "generate_until", asked[:1]))
    assert text == f"<think>\na STOP b\n</think>\n\n{chat}"


def test_what_cannot_be_done_is_a_sentence(harness):
    model = lowtax_model(pretrained="x", engine="fake")
    with pytest.raises(UserError, match="does not know the generation setting 'repetition_penalty'"):
        model.generate_until(instances(harness, "generate_until", [("Hi", {"repetition_penalty": 2, "until": []})]))
    with pytest.raises(UserError, match="'fake' generates texts but does not score given ones"):
        model.loglikelihood(instances(harness, "loglikelihood", [("Hi", " there")]))


@pytest.mark.parametrize("adapted", [False, True])
def test_likelihoods_are_those_of_lm_eval_s_own_model(harness, tiny, adapter, adapted):
    from lm_eval.models.huggingface import HFLM

    ours = lowtax_model(pretrained=str(tiny), adapter=str(adapter) if adapted else None, batch_size=2)
    # Not `peft=`: lm-eval then also cuts rows without a token off the vocabulary, which changes every probability.
    model = load_model(str(tiny))
    model = PeftModel.from_pretrained(model, str(adapter)).eval() if adapted else model
    their = HFLM(pretrained=model, tokenizer=load_tokenizer(str(tiny)), batch_size=1)
    pairs = [("2 plus 2 is", " four"), ("", "hello"), ("A  ", "b c"), ("x" * 700, " yes"), ("2 plus 2 is", "\u00f6")]
    asked = instances(harness, "loglikelihood", pairs)
    found, want = ours.loglikelihood(asked), their.loglikelihood(asked)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in want], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in want]
    texts = instances(harness, "loglikelihood_rolling", [("short",), ("long " * 150,)])
    assert ours.loglikelihood_rolling(texts) == pytest.approx(their.loglikelihood_rolling(texts), rel=1e-5)


def test_a_greedy_continuation_is_told(harness, tiny):
    model = lowtax_model(pretrained=str(tiny))
    context = model.tok_encode("2 plus 2 is")
    logits = load_model(str(tiny))(torch.tensor([context])).logits[0, -1]
    best, second = logits.argsort(descending=True)[:2].tolist()
    found = model._loglikelihood_tokens([("", context, [token]) for token in (second, best)])
    assert [greedy for _, greedy in found] == [False, True]
    assert found[1][0] == pytest.approx(float(logits.log_softmax(-1)[best]))


def test_a_rendered_conversation_is_what_is_scored(harness, tiny):
    model = lowtax_model(pretrained=str(tiny))
    rendered = (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nIt is"
    )
    asked = [(model.apply_chat_template(CHAT, False), "4"), (rendered, "4")]
    chat, text = model.loglikelihood(instances(harness, "loglikelihood", asked))
    assert chat == pytest.approx(text)


def test_the_command_line_has_the_model_and_the_tasks(harness, monkeypatch, capsys):
    from lm_eval.api.registry import get_model

    from lowtax.interop.lm_eval import Lowtax, main

    monkeypatch.setattr(sys, "argv", ["lowtax"])
    with pytest.raises(SystemExit) as ended:
        main(["run", "--help"])
    assert ended.value.code == 0
    assert "--include_path" in capsys.readouterr().out
    assert get_model("lowtax") is Lowtax
    assert sys.argv[-2:] == ["--include_path", str(lm_eval_tasks.FOLDER)]
