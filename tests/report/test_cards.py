"""The rates of a study in the model cards of its checkpoints."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from lowtax.common.errors import UserError
from lowtax.models.model_card import DataFacts, Facts, model_card
from lowtax.report.cards import write_cards
from lowtax.report.stored import read


@pytest.fixture
def study(made_study: Path, tmp_path: Path) -> Path:
    out = Path(shutil.copytree(made_study, tmp_path / "study"))
    facts = Facts(
        name="r1, checkpoint-100", model="org/model", placement={"kind": "lora", "rank": 1}, settings={}, seed=0,
        precision="float32", data=[DataFacts(source="builtin:refusals", rows=3)], step=100, seconds=1.0, loss=0.1,
        trainable_parameters=5,
    )  # fmt: skip
    for arm in ("arm_0", "arm_1"):
        folder = out / "arms" / arm / "seed-0" / "checkpoint-100"
        folder.mkdir()
        (folder / "README.md").write_text(model_card(facts))
    (out / "frontier.png").write_bytes(b"png")
    return out


def test_the_rates_of_the_table_are_in_the_card(study: Path):
    assert write_cards(study) == 2
    folder = study / "arms" / "arm_1" / "seed-0" / "checkpoint-100"
    row = next(r for r in read(study).rows if (r["arm"], r["step"]) == ("arm_1", 100))
    card = ModelCard.load(folder / "README.md")
    values = {result.metric_name.partition(",")[0]: result.metric_value for result in card.data.eval_results}
    assert values == {
        "harmful requests refused": row["safety"]["value"],
        "ordinary requests refused": row["over_refusal"]["value"],
        "sums solved": row["reasoning"]["sums"]["value"],
    }
    assert "Not measured. `lowtax run`" not in card.text
    assert "](frontier.png)" in card.text
    assert card.text.count("## Safety and reasoning") == card.text.count("## Intended use") == 1
    assert (folder / "frontier.png").read_bytes() == b"png"
    first = (folder / "README.md").read_text()
    assert write_cards(study) == 2
    assert (folder / "README.md").read_text() == first


def test_a_card_of_somebody_else_stays(study: Path):
    path = study / "arms" / "arm_0" / "seed-0" / "checkpoint-100" / "README.md"
    path.write_text("# Mine\n\n## Safety and reasoning\n\nSecret.\n\n## More\n")
    assert write_cards(study) == 1
    assert "Secret." in path.read_text()


def test_no_table_no_cards(study: Path):
    (study / "table.json").unlink()
    with pytest.raises(UserError, match="has no table"):
        write_cards(study)
