"""Cards: the JSON files in which lowtax writes how a result was made, checked when they are read.

A study may be a stranger's, and a card may be damaged. `read_card` returns the content of a card as it is in the file,
since ids of rows are hashes of it, after a comparison with one of the classes here. Fields that nothing reads are not
looked at.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from lowtax.common.borders import brief
from lowtax.common.errors import UserError
from lowtax.common.files import MAKE_AGAIN, read_mapping

Count = Annotated[int, Field(strict=True, ge=0, le=10**15)]
Seconds = Annotated[float, Field(strict=True, ge=0, le=1e12)]
Number = Annotated[float, Field(strict=True, ge=-1e300, le=1e300)]
Name = Annotated[str, Field(pattern=r"^checkpoint-[0-9]{1,15}$")]  # of a folder inside that of its arm
Text = Annotated[str, Field(max_length=1000)]


class Card(BaseModel):
    """A card, or a part of one."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _Settings(Card):
    steps: Number | None = None
    epochs: Number | None = None


class JobRecord(Card):
    """Everything that decided a training run (`Job.describe`)."""

    settings: _Settings = _Settings()
    methods: list[dict[str, Any]] = []


class TrainedCheckpoint(Card):
    """A checkpoint in the card of a training run."""

    name: Name
    step: Count
    seconds: Seconds


class ArmCard(Card):
    """The card of a finished arm, trained or edited, from which another one starts."""

    checkpoints: list[TrainedCheckpoint] = Field(min_length=1)


class TrainedCard(Card):
    """The card of a finished training run: its job, and the jobs of checkpoints that an earlier, shorter run made."""

    job: JobRecord
    jobs: dict[Text, JobRecord] = {}
    checkpoints: list[TrainedCheckpoint]
    trainable_parameters: Count


class FailedArm(Card):
    """An arm that failed, in the table of a study."""

    arm: Text
    seed: Count
    reason: str


class FailedArms(Card):
    """The table of a study, of which only the arms that failed are read."""

    failed: list[FailedArm] = []


class SavedCheckpoint(TrainedCheckpoint):
    """A checkpoint in a saved state."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    loss: float
    validation: float | None = None


class FinishedCard(TrainedCard):
    """The card of a training run whose checkpoints are listed again."""

    checkpoints: list[SavedCheckpoint]  # type: ignore[assignment]


class Progress(Card):
    """The progress of an unfinished run, beside its state."""

    step: Annotated[Count, Field(gt=0)]
    total: Annotated[Count, Field(gt=0)] | None = None
    seconds: Seconds
    checkpoints: list[SavedCheckpoint]
    losses: list[float] = []
    job: JobRecord | None = None
    jobs: dict[Text, JobRecord] = {}


class EditedCheckpoint(TrainedCheckpoint):
    """A checkpoint that edits made."""

    weights: Text
    edit_seconds: Seconds


class EditsUnderWay(Card):
    """The checkpoints of an edited arm that are made so far."""

    checkpoints: list[EditedCheckpoint]


class EditedCard(EditsUnderWay):
    """The card of an edited arm."""

    trainable_parameters: Count


class _Update(Card):
    norm: Number
    relative_norm: Number
    rank: Count | None


class Updates(RootModel[dict[Text, _Update]]):
    """The norms of updates by checkpoint."""


class Effects(RootModel[dict[Text, Number]]):
    """The changes of logits that adapters make, by checkpoint."""


class DrawnReplies(Card):
    """The replies of a model in training, as tokens by the number of their example."""

    made_by: Text
    replies: dict[Annotated[str, Field(pattern=r"^[0-9]{1,15}$")], Annotated[list[Count], Field(min_length=1)]]


class StudyCard(Card):
    """The card of a study: the seconds of every call, and the machine of the last."""

    seconds: list[Number] = []
    hardware: dict[str, Any] = {}


class FolderCard(Card):
    """The card of a folder that `sample` or `evaluate` made."""

    model: str = "unknown"
    sampling: dict[str, Any] | None = None
    tasks: dict[str, dict[str, Any]] = {}
    versions: dict[str, str] = {}


class _CellRecord(Card):
    key: Text
    seconds: Seconds
    error: str | None = None


class ConsistencyProgress(Card):
    """The cells of a consistency study that have been run: by name, what decided them, and how they ended."""

    cells: dict[Text, _CellRecord] = {}


class BaseRecord(Card):
    """The base of a folder of results (`models.fingerprint.Base`)."""

    made_by: Text
    weights: Text | None = None
    text: Text | None = None


class _Columns(Card):
    model_config = ConfigDict(extra="forbid")

    prompt: str | None = None
    reply: str | None = None
    id: str | None = None
    category: str | None = None
    source: str | None = None
    thinking_tags: str | None = None
    opened: bool | None = None


class _Origin(Card):
    file: str
    columns: _Columns


class SafetyCard(Card):
    """The rates that `judge` writes, with the file of the replies that it read."""

    replies: _Origin | None = None


def read_card(path: Path, kind: type[BaseModel], advice: str = MAKE_AGAIN) -> dict[str, Any]:
    """Return the content of a card.

    Args:
        path: the file.
        kind: the class of the card.
        advice: what to do with a damaged one, for its error.

    Raises:
        UserError: the file cannot be read, is not JSON, or is no card of this kind.
    """
    value = read_mapping(path, advice=advice)
    try:
        kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:80]
        raise UserError(
            f"{path} is damaged or forged: {where} is {brief(first['input'])} ({first['msg']}); {advice}."
        ) from error
    return value
