"""The verbs of the Python API: those of the command line, without a recipe, and `compare`.

The command line calls the same functions. Each that takes `out` writes the files that its command writes, and resumes
what is there; without `out` the files are temporary, and an interrupted call starts anew. Two processes never write to
one folder. Engines, judges and exams of your own are given as `path/to/file.py:Class`.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lowtax.benchmarks.base import Task
from lowtax.benchmarks.examine import context_warning
from lowtax.common.errors import UserError
from lowtax.common.files import locked, read_rows
from lowtax.common.log import quiet_libraries, say
from lowtax.common.names import refuse_inputs
from lowtax.common.records import Reply, Rows, Subject, Verdict
from lowtax.data import documents
from lowtax.data.chat import Thinking, Variables
from lowtax.engines.sampling import reply_tokens
from lowtax.engines.settings import PLAIN, EngineSettings
from lowtax.judges import own_replies
from lowtax.judges.base import Text
from lowtax.judges.own_replies import Columns
from lowtax.models.loading import precision as resolve_precision
from lowtax.models.placement import Placement
from lowtax.study import adhoc, running, tasklist
from lowtax.study.adding import with_stored
from lowtax.study.recipe import Recipe, build, load
from lowtax.study.study import Study

Where = str | Path
Preset = Literal["default", "paper", "reference"]


def train(
    model: str,
    *,
    data: str | Sequence[Any],
    mode: str | Placement,
    out: Where,
    methods: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
    precision: str = "auto",
    thinking: Thinking = "default",
    chat_template_kwargs: Variables | None = None,
    thinking_tags: str | None = None,
    system: str | None = None,
    execution: Mapping[str, Any] | None = None,
    trust: bool = False,
    **settings: Any,
) -> Path:
    """Train one arm, and return the folder of its last checkpoint: a PEFT adapter, or a model for mode `full`.

    Args:
        model: builtin:NAME, a folder, a .gguf file or a hub id.
        data: one training set or several, as in a recipe: `"builtin:refusals"`, `["star1", {"source": "rows.jsonl"}]`.
        mode: a mode string such as `lora_up_proj_only_from16_to31_r1`, or a `Placement`.
        out: folder of the run, a study to which this arm is added; a finished run is returned at once.
        methods: methods that act on training, as in a recipe.
        chat_template_kwargs: variables of the chat template, such as reasoning_effort.
        thinking_tags: the tags of thoughts, a family or `<a>...</a>`, instead of those that the chat template shows.
        system: a system prompt of all rows that have none.
        settings: fields of `train` in a recipe: epochs, steps, lr, batch_size ...
        execution: fields of `execution` in a recipe.
        trust: accept the classes in Python files that the study in `out` names; they run.

    Raises:
        UserError: the model, the data, the mode or a setting is not usable, or `out` has a run with other settings.
    """
    values = {
        "model": model,
        "data": [data] if isinstance(data, str) else list(data),
        "seeds": [seed],
        "precision": precision,
        "thinking": thinking,
        **({"chat_template_kwargs": dict(chat_template_kwargs)} if chat_template_kwargs else {}),
        **({"thinking_tags": thinking_tags} if thinking_tags else {}),
        **({"system": system} if system else {}),
        "train": settings,
        "execution": dict(execution or {}),
    }
    recipe = one_arm(values, mode, methods, "lt.train")
    arm = next(iter(recipe.arms))
    with Study(with_stored(recipe, Path(out), trust), out) as study:
        study.check()
        study.train(arm)
        last = next(s for s in reversed(study.trained(arm)) if s.seed == seed)
    return Path(last.adapter or last.model)


def one_arm(
    values: Mapping[str, Any],
    mode: str | Placement,
    methods: Sequence[Mapping[str, Any]] = (),
    origin: str = "the recipe",
    settings: Sequence[str] = (),
) -> Recipe:
    """Return the recipe of a study with one arm, which is named after its mode.

    Args:
        values: the other fields of the recipe.
        origin: the place that an error names.
        settings: `key=value` overrides, as of `--set`.
    """
    if isinstance(mode, Placement):
        name, arm = "placement", dict[str, Any](placement=mode.model_dump())
    else:
        name, arm = mode, dict[str, Any](mode=mode)
    if methods:
        arm["methods"] = [dict(method) for method in methods]
    arms = {name: arm}
    return build({"name": name, **values, "arms": arms}, list(settings), origin)


def sample(
    model: str,
    *,
    prompts: str | Sequence[str],
    adapters: Sequence[Where] = (),
    out: Where | None = None,
    preset: str | None = None,
    limit: int | None = None,
    engine: str = "hf",
    precision: str = "auto",
    batch_size: int = 64,
    thinking: Thinking = "default",
    base_is_the_same: bool = False,
    chat_template_kwargs: Variables | None = None,
    thinking_tags: str | None = None,
    deterministic: bool = False,
    workers: int | None = None,
    on: str | None = None,
    **sampling: Any,
) -> Rows[Reply]:
    """Sample replies of a model and of adapters of it, and return them.

    Args:
        prompts: prompt sets by name, or `FILE[:column]`.
        adapters: PEFT folders; all share the engine and its batches with the base.
        preset: `paper` is temperature 1 and 2,048 tokens.
        limit: at most so many prompts of a set, drawn by a fixed seed and spread over its categories.
        base_is_the_same: your word that the adapters fit the model, although it has other weights than they name.
        chat_template_kwargs: variables of the chat template, such as reasoning_effort.
        thinking_tags: the tags of thoughts, a family or `<a>...</a>`, instead of those that the chat template shows.
        deterministic: decode every row in a fixed batch, so that a resumed call draws the same in any precision.
        workers, on: draw by workers, as `run` does.
        sampling: max_new_tokens, temperature, top_p, top_k, samples, seed, decoding, system. None is the default.

    Raises:
        UserError: a prompt set is not available, or the model or an adapter cannot be served.
    """
    drawing = (thinking, base_is_the_same, chat_template_kwargs or {}, thinking_tags, deterministic)
    with _folder(out) as folder:
        settings = EngineSettings(engine, resolve_precision(precision), batch_size, *drawing)
        request = adhoc.Ask(
            model,
            [Path(adapter) for adapter in adapters],
            [prompts] if isinstance(prompts, str) else list(prompts),
            adhoc.sampling(preset, sampling, lambda: reply_tokens(model, engine, thinking_tags, short=PLAIN)),
            settings,
            limit,
        )
        with running.drawing(workers, on, folder) as draw:
            return Rows(adhoc.sample(request, folder, draw))


def judge(
    replies: Iterable[Reply] | Where,
    judge: str = "refusal",
    *,
    on: Text = "answer",
    out: Where | None = None,
    again: bool = False,
    engine: str = "hf",
    precision: str = "auto",
    batch_size: int = 16,
    columns: Mapping[str, Any] | None = None,
    workers: int | None = None,
    workers_on: str | None = None,
) -> Rows[Verdict]:
    """Judge replies, and return one verdict for each, in their order.

    Args:
        replies: what `sample` returned, a `replies.jsonl` or its folder, or any file with requests and replies.
        judge: a name, `name:MODEL`, or `path/to/file.py:Class`.
        on: the text to judge. `both` is the reply as it was written, thought and answer.
        again: judge anew, and replace the stored verdicts of this judge on this text.
        engine, precision, batch_size: for judges that are models.
        columns: of a file of your own, those of `prompt`, `reply`, `id`, `category` and `source` (the model), the
            usual names by default; and `thinking_tags` and `opened`, as in `grade`.
        workers: judge in so many processes, one GPU each or a share of the cores; with `workers_on`, on a cluster.
        workers_on: `ray` or `ray://HOST:PORT`, as `on` of `run`.

    Raises:
        UserError: there is no such judge, or no replies.
    """
    own, origin = False, None
    if isinstance(replies, str | Path):
        named = Columns(**(columns or {}))
        rows, own = stored_replies(Path(replies), named)
        if out is not None:
            refuse_inputs(Path(out), (*adhoc.JUDGED, "verdicts.jsonl"), Path(replies))
        origin = {"file": str(Path(replies).resolve()), "columns": vars(named)}
    else:
        rows = list(replies)
    with _folder(out) as folder:
        settings = EngineSettings(engine, precision, batch_size)
        with running.reading(workers, workers_on, folder) as read:
            return Rows(adhoc.judge(rows, judge, on, folder, settings, again, own, origin, read).values())


def stored_replies(path: Path, columns: Columns) -> tuple[list[Reply], bool]:
    """Return the replies in a folder of `sample`, or in any file; and True if they have the user's own ids.

    Raises:
        UserError: there are none.
    """
    file = path / "replies.jsonl" if path.is_dir() else path
    if file.is_file() and (columns.named or not own_replies.is_ours(file)):
        return own_replies.read(file, columns), True
    if rows := list(read_rows(file, Reply).values()):
        return rows, False
    raise UserError(f"{file} holds no replies: `lowtax sample --model ... --out DIR` writes them.")


def evaluate(
    model: str,
    *,
    tasks: str | Sequence[str] | Mapping[str, Task | Mapping[str, Any]],
    adapters: Sequence[Where] = (),
    out: Where | None = None,
    preset: Preset | None = None,
    exam: Mapping[str, Any] | None = None,
    limit: int | None = None,
    engine: str = "hf",
    precision: str = "auto",
    batch_size: int = 64,
    thinking: Thinking = "default",
    base_is_the_same: bool = False,
    chat_template_kwargs: Variables | None = None,
    thinking_tags: str | None = None,
    deterministic: bool = False,
    workers: int | None = None,
    on: str | None = None,
    **sampling: Any,
) -> Rows[dict[str, Any]]:
    """Let a model and adapters of it solve tasks, grade the answers, and return the rates: one row a subject.

    A row has `arm` and, under `reasoning`, for each task its accuracy with interval, unfinished share and lengths.

    Args:
        tasks: names of benchmarks or files of questions, or a mapping of names to `Task` settings.
        preset: `paper` has its prompts and 8 samples; `reference` extracts answers as its code does, too.
        exam: fields of every task: seed, subset, file, checker.
        limit: at most so many questions of a task.
        base_is_the_same: your word that the adapters fit the model, although it has other weights than they name.
        chat_template_kwargs: variables of the chat template, such as reasoning_effort.
        thinking_tags: the tags of thoughts, a family or `<a>...</a>`, instead of those that the chat template shows.
        deterministic: decode every row in a fixed batch, so that a resumed call draws the same in any precision.
        workers, on: draw by workers, as `run` does.
        sampling: max_new_tokens, temperature, top_p, samples, seed, system. By default 32,768 tokens, 0.6 and 0.95.

    Raises:
        UserError: a task is not available, or the model or an adapter cannot be served.
    """
    if isinstance(tasks, Mapping):
        if preset or exam or limit or sampling:
            raise UserError("Tasks with settings define preset, exam, limit and sampling themselves: remove these.")
        chosen = {name: task if isinstance(task, Task) else Task(**task) for name, task in tasks.items()}
    else:
        names = [tasks] if isinstance(tasks, str) else list(tasks)
        chosen = tasklist.tasks(names, preset, {**(exam or {}), "n": limit}, sampling)
    drawing = (thinking, base_is_the_same, chat_template_kwargs or {}, thinking_tags, deterministic)
    with _folder(out) as folder:
        settings = EngineSettings(engine, resolve_precision(precision), batch_size, *drawing)
        if sentence := context_warning(model, engine, chosen):
            say(sentence)
        request = adhoc.Exam(model, [Path(adapter) for adapter in adapters], chosen, settings)
        with running.drawing(workers, on, folder) as draw:
            return Rows(adhoc.evaluate(request, folder, draw)["rows"])


def run(
    recipe: Recipe | Where,
    out: Where,
    *,
    train: bool = True,
    workers: int | None = None,
    on: str | None = None,
    gpus_each: int | None = None,
    nodes_each: int | None = None,
    patience: float | None = None,
    limit: int | None = None,
    base_is_the_same: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """Run every stage of a recipe, in this process or by workers, and return its table.

    `rows` of the table has a row for each checkpoint; `failed`, if it is there, has the arms that failed, each with
    its seed and the reason. A repeated call resumes, and tries these again.

    Args:
        recipe: a recipe, or its YAML file.
        out: the folder of the study.
        train: train what is not trained yet; else the checkpoints in the folder are measured.
        workers: processes of this machine, one GPU each or a share of the cores; with `on`, actors of the cluster.
        on: `ray` or `ray://HOST:PORT`, to work on the machines of a Ray cluster.
        gpus_each: the GPUs of each worker.
        nodes_each: the machines of the cluster on which they are, for training that one machine does not hold.
        patience: seconds without a word after which a worker's unit goes to another; 7200 by default.
        limit: at most so many prompts of a set, spread over its categories, and of a task.
        base_is_the_same: your word that the model is that of the folder's results, although it has other weights.
        trust: accept the classes in Python files that the recipe file names; they run.

    Raises:
        UserError: the recipe cannot be run, or there are fewer GPUs than the workers need.
    """
    quiet_libraries()
    settings = recipe if isinstance(recipe, Recipe) else load(Path(recipe), trust=trust)
    with Study(settings, out, base_is_the_same, limit) as study:
        return running.run(study, train, workers, on, gpus_each, patience, nodes_each)


def compare(
    folder: Where,
    against: str | None = None,
    *,
    safety: float | None = None,
    over_refusal: float | None = None,
    trust: bool = False,
) -> Rows[dict[str, Any]]:
    """Judge and grade what a study has stored, write its table and picture, and return the rows of the table.

    Args:
        against: compare every checkpoint with the last one of this arm, request by request, instead.
        safety, over_refusal: the level at which arms are compared, instead of the recipe's: the share of harmful
            requests that is refused, and the largest share of ordinary ones.
        trust: accept the classes in Python files that the study names; they run.

    Raises:
        UserError: the folder holds no study, replies are missing, or it names Python files and is not trusted.
    """
    with Study.open(folder, trust=trust) as study:
        study.require("either")
        if against is None:
            return Rows(study.compare(study.level(safety, over_refusal))["rows"])
        from lowtax.study import paired

        return Rows(paired.against(study, against))


@contextmanager
def _folder(out: Where | None) -> Iterator[Path]:
    """Lock the output folder, or a temporary one."""
    quiet_libraries()
    if out is None:
        with tempfile.TemporaryDirectory(prefix="lowtax-") as folder:
            yield Path(folder)
    else:
        with locked(Path(out)):
            yield Path(out)


def edit(
    method: str | Mapping[str, Any],
    adapter: Where,
    out: Where,
    *,
    base: str | None = None,
    rank: int | None = None,
    **fields: Any,
) -> Path:
    """Write the adapter that a method makes of a trained one, from weights alone, and return its folder.

    Args:
        method: a name that `lowtax methods` lists, `path/to/file.py:Class`, or a whole specification with `name`.
        fields: fields of the method.
        base: the base, if it is not where the adapter says.
        rank: the largest rank of what is edited.

    Raises:
        UserError: the method edits nothing, `out` is in use, or the adapter is not a plain LoRA of this base.
    """
    from lowtax.methods import editing

    spec = {"name": method, **fields} if isinstance(method, str) else {**method, **fields}
    return editing.edit(spec, Path(adapter), Path(out), base=base, rank=rank).folder


def merge(adapter: Where, out: Where | None = None, *, base: str | None = None, dtype: str = "bfloat16") -> Path:
    """Add an adapter to its base in float32, write the model in `dtype`, and return its folder.

    Args:
        out: the new folder; ADAPTER_merged by default.
        base: the base, if it is not where the adapter says.
        dtype: float32, bfloat16, float16, or auto, which is that of the base.

    Raises:
        UserError: `out` is in use, or the adapter is not a plain LoRA of this base.
    """
    from lowtax.models import merging

    folder = Path(adapter)
    return merging.merge(folder, Path(out or merging.default_out(folder)), base=base, dtype=dtype).folder


def analyze(
    adapters: Where | Sequence[Where] = (),
    *,
    tuned: Sequence[str] = (),
    base: str | None = None,
    top: int = 16,
    exact: bool = False,
    maps: Sequence[str] | None = None,
    text: str | None = None,
    max_tokens: int | None = None,
    precision: str = "auto",
) -> dict[str, Any]:
    """Return where weight updates lie: norms, ranks, overlap with the base's singular directions, intruders.

    With a text, the key `text` has the loss of the base and of each checkpoint on it.

    Args:
        adapters: PEFT LoRA folders of one base.
        tuned: fully fine-tuned checkpoints; they need `base`.
        base: the base model; that of the adapters by default.
        top: singular directions of W on each side, for overlaps.
        exact: decompose large matrices completely, which takes minutes each.
        maps: modules whose singular vectors before and after are compared, under the key `similarity`; if empty, those
            with the most intruders.
        text: plain documents, as SOURCE[,column=C][,n=N]: a .txt file, a folder of them, a data file, or owner/name.
        max_tokens: the longest window of a document; 1024, or all positions of a model that has fewer.
        precision: that of the models that read the text.

    Raises:
        UserError: there is nothing to analyse, or updates and base do not fit, or the text has no document.
    """
    from lowtax.analysis import geometry, similarity
    from lowtax.analysis.geometry import Settings
    from lowtax.models.adapters import check_base
    from lowtax.models.weights import open_weights

    folders = [Path(adapters)] if isinstance(adapters, str | Path) else [Path(adapter) for adapter in adapters]
    if not folders and not tuned:
        raise UserError("analyze needs adapters or tuned checkpoints: give at least one.")
    weights = open_weights(base or geometry.base_of(folders))
    for folder in folders if base is None else ():
        check_base(folder, weights.ref, "name it by --base")
    sources = [geometry.of_adapter(folder, ref=weights.ref) for folder in folders]
    sources += [geometry.of_tuned(ref, weights) for ref in tuned]
    texts = None if text is None else documents.read(text)
    read = {}
    if texts is not None:
        from lowtax.analysis import text_loss

        models = [(weights.ref, str(folder)) for folder in folders] + [(ref, None) for ref in tuned]
        subjects = [
            Subject(source.arm, None, source.checkpoint, 0, model, adapter, "")
            for source, (model, adapter) in zip(sources, models, strict=True)
        ]
        where, labels = resolve_precision(precision), geometry.labels(sources)
        read = {"text": text_loss.measure(weights.ref, subjects, labels, texts, where, max_tokens)}
    report = geometry.analyze(weights, sources, Settings(top=top, exact=exact))
    if maps is not None:
        report["similarity"] = similarity.maps(weights, sources, report, maps)
    return report | read
