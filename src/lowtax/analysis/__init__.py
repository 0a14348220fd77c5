"""Analysis of weight updates."""
