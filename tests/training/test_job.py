"""What a training job records, and what it leaves out so that stored runs stay valid."""

from dataclasses import replace

from lowtax.data.conversations import Conversation
from lowtax.models.placement import parse_mode
from lowtax.training.job import Job
from lowtax.training.settings import Train

JOB = Job(
    model="m",
    placement=parse_mode("full"),
    settings=Train(),
    seed=0,
    precision="float32",
    rows=[Conversation("q", None, "a")],
)


def test_template_variables_and_the_system_prompt_are_recorded_where_they_are_set():
    plain = JOB.describe()
    assert not {"chat_template_kwargs", "system"} & plain.keys()
    changed = replace(JOB, chat_template_kwargs={"reasoning_effort": "low"}, system="Be kind.").describe()
    assert changed == plain | {"chat_template_kwargs": {"reasoning_effort": "low"}, "system": "Be kind."}
