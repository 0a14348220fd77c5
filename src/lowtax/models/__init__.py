"""Models, adapters and weights: load, place, merge, describe."""
