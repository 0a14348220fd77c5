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


def test_seeds_of_order_and_choice_are_recorded_where_they_are_set():
    settings = Train(order_seed=3, data_seed=4)
    changed = replace(JOB, settings=settings).describe()
    assert changed["settings"] == JOB.describe()["settings"] | {"order_seed": 3, "data_seed": 4}
    assert not {"order_seed", "data_seed"} & JOB.describe()["settings"].keys()
    assert (settings.order_of(0), settings.choice_of(0)) == (3, 4)
    assert (Train().order_of(7), Train().choice_of(7)) == (7, 7)
