"""Other harnesses and file formats."""
