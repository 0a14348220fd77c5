"""For programs that tests start: scikit-learn, which a library of `dev` installs, costs each of them four seconds."""

import sys

sys.modules["sklearn"] = None  # type: ignore[assignment]
