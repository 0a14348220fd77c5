"""lowtax: safety alignment of reasoning LLMs without the safety tax, measured."""

__version__ = "0.1.0"
