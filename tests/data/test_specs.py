"""Training sources in one line, on the command line and in recipes."""

import re
from pathlib import Path

import pytest
import yaml

from lowtax.common.errors import UserError
from lowtax.data import specs
from lowtax.data.specs import Data
from lowtax.study import recipe


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("direct-refusal", Data(source="direct-refusal")),
        (
            "refusals.jsonl,prompt=question,answer=response,n=500",
            Data(source="refusals.jsonl", columns={"prompt": "question", "answer": "response"}, n=500),
        ),
        (
            "star1, path=a/star1.jsonl.gz,rendering=thinksafe",
            Data(source="star1", path="a/star1.jsonl.gz", rendering="thinksafe"),
        ),
        (
            "safechain,where.label=vanilla_harmful,where.a.b=c,first=1000,ratio=0.5",
            Data(source="safechain", where={"label": "vanilla_harmful", "a.b": "c"}, first=1000, ratio=0.5),
        ),
        (
            'x.csv,"thought=No, I will not.",columns.thought=why',
            Data(source="x.csv", thought="No, I will not.", columns={"thought": "why"}),
        ),
        ("builtin:ordinary,answers=self", Data(source="builtin:ordinary", answers="self")),
        (
            "owner/name,revision=v1,subset=en,split=test",
            Data(source="owner/name", revision="v1", subset="en", split="test"),
        ),
        ("x.jsonl,thought=a=b", Data(source="x.jsonl", thought="a=b")),
        ("x.jsonl,train_on=assistant", Data(source="x.jsonl", train_on="assistant")),
    ],
)
def test_specs_of_one_line(text: str, spec: Data):
    assert specs.parse(text) == spec
    assert Data.model_validate(text) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no source"),
        ("a\nb", "not one line"),
        (",n=5", "names no source"),
        ("star1,n", "'n' is not key=value"),
        ("star1,n=5,n=6", "'n' is given twice"),
        ("star1,prompt=a,columns.prompt=b", "is given twice"),
        ("star1,size=5", "unknown key 'size'; known are"),
        ("star1,limit=5", "unknown key 'limit'; write n=5 for rows drawn by the seed, or first=5"),
        ("star1,max_samples=5", "unknown key 'max_samples'; write n=5"),
        ("star1,train_on=everything", "train_on: Input should be 'last', 'assistant' or 'all'"),
        ("star1,rnedering=x", "did you mean 'rendering'"),
        ("star1,rendering=standrad", "did you mean 'standard'"),
        ("star1,n=many", "n: Input should be a valid integer"),
        ("star1,n=0", "n: Input should be greater than 0"),
        ("star1,ratio=-1", "ratio: "),
        ("star1,columns.prmpt=x", "columns.prmpt"),
        ("star1,sampling.n=x", "only columns.NAME, where.COLUMN and draw.KEY"),
        ("star1,answers=mine", "answers: Input should be 'given', 'self', 'rewrite', 'fixed' or 'rollout'"),
        ("star1,steer=refuse", "steer is for answers that a model writes"),
        ("star1,answers=self,steer=refsue", "there is no instruction 'refsue'; did you mean 'refuse'"),
        ("star1,answers=self,draw.temperature=0,draw.attempts=3", "draws the same answer again at temperature 0"),
        ("star1,filter=refusal", "filter is for answers that a model writes"),
        ("star1,answers=self,rejected=self", "rejected: self is for sources with answers"),
        ("star1,teacher=x", "teacher is for answers that a model writes"),
        ("star1,thought=No, I will not.", "is not key=value; put a part that holds a comma in double quotes"),
    ],
)
def test_malformed_lines(text: str, message: str):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        specs.parse(text)
    assert str(caught.value).startswith(f"The data {text!r}: ")
    assert "\n" not in str(caught.value)


def test_a_recipe_may_hold_specs_of_one_line(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    written = {"model": "m", "data": ["builtin:refusals,n=8", {"source": "x.jsonl", "where": {"safe": True}}]}
    path.write_text(yaml.safe_dump(written))
    loaded = recipe.load(path)
    assert loaded.data == [Data(source="builtin:refusals", n=8), Data(source="x.jsonl", where={"safe": True})]
    path.write_text(yaml.safe_dump(loaded.model_dump(mode="json", exclude_unset=True)))  # as a study keeps it
    assert recipe.load(path).data == loaded.data
    path.write_text(yaml.safe_dump({**written, "data": ["builtin:refusals,rendering=mine"]}))
    with pytest.raises(UserError, match=r"data\.0\.rendering: there is no such rendering; known are"):
        recipe.load(path)
