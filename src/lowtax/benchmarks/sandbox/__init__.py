"""A sandbox for programs that nobody has read (docs/explanation/sandbox.md). `run` is the entry."""
