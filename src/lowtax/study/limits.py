"""`--limit N`: a recipe with at most N prompts of each set and N problems of each task."""

from lowtax.study.recipe import Recipe

SETS = ("harmful", "ordinary")


def as_wide(settings: Recipe, stored: Recipe, n: int) -> Recipe:
    """Return a limited recipe with the stored prompt sets and tasks that differ from its own in their numbers alone."""
    narrow = limited(stored, n)
    sets = {kind: list(getattr(settings, kind)) for kind in SETS}
    for kind, specs in sets.items():
        known = list(zip(getattr(narrow, kind), getattr(stored, kind), strict=True))
        sets[kind] = [next((whole for part, whole in known if part == spec), spec) for spec in specs]
    tasks = {
        name: stored.tasks[name] if task == narrow.tasks.get(name) else task for name, task in settings.tasks.items()
    }
    return settings.model_copy(update={**sets, "tasks": tasks})


def limited(settings: Recipe, n: int) -> Recipe:
    """Return the recipe with at most n prompts of each set, spread over its categories, and n problems of each task."""
    sets = {kind: [spec.at_most(n) for spec in getattr(settings, kind)] for kind in SETS}
    tasks = {name: task.model_copy(update={"n": min(n, task.n or n)}) for name, task in settings.tasks.items()}
    return settings.model_copy(update={**sets, "tasks": tasks})
