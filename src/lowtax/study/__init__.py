"""A study: recipe, arms, stages, comparison."""
