"""A sandbox for programs that nobody has read (docs/sandbox.md): `run` is the entry, all else is its machinery."""
