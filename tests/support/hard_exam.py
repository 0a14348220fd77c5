"""An exam whose grader does what it is told: for tests of the worker processes."""

import os
import time
from typing import Literal

from lowtax.benchmarks.base import Score, Task
from lowtax.common.errors import UserError
from lowtax.common.records import Prompt


class Hard:
    workers: Literal["none", "processes", "threads"] = "processes"

    def __init__(self, task: Task) -> None:
        self.task = task

    def rows(self) -> list[Prompt]:
        return []

    def grade(self, row: Prompt, answer: str) -> Score:
        if answer == "hang":
            time.sleep(100)
        if answer == "nap":
            time.sleep(3)
        if answer == "die":
            os._exit(3)
        if answer == "raise":
            raise ZeroDivisionError
        if answer == "blame":
            raise UserError("The gold answer is none; put it right.")
        if answer == "memory":
            return Score(bool(bytearray(8 << 30)), "x")
        print("noise on standard output", flush=True)
        return Score(answer == row.gold, answer, f"rule {os.getpid()}")
