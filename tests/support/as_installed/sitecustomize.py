"""For programs that tests start: scikit-learn and SciPy, which libraries of `dev` install, cost each of them seconds.

transformers imports both where they are; without `dev` they are not.
"""

import sys

sys.modules["sklearn"] = sys.modules["scipy"] = None  # type: ignore[assignment]
