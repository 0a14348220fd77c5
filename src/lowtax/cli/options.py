"""The options that several commands have."""

from typing import Annotated, Literal

import typer

ON_HELP = "Text to judge: the answer, the thought, or both."

Engine = Annotated[str, typer.Option("--engine", help="hf, vllm, openai (a server), or file.py:Class.")]
Precision = Annotated[
    Literal["auto", "bfloat16", "float32"],
    typer.Option("--precision", help="Precision of the weights; auto is that which the hardware multiplies fast."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows that the engine decodes together.")]
Thinking = Annotated[
    Literal["default", "on", "off"], typer.Option("--thinking", help="Thinking, for templates with a switch.")
]
Text = Literal["answer", "thought", "both"]
Preset = Literal["default", "paper", "reference"]
