"""Grading of text answers, in one direction: `extract` the final answer, `normalise` it, compare by `mathematics`."""
