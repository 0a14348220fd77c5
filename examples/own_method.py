"""A training method of your own: keep every update small.

Use it in a recipe that is run with `--trust`: `methods: [{name: examples/own_method.py:SmallUpdate, beta: 0.01}]`. A
method is a frozen pydantic class. Its fields are its hyper-parameters, and it overrides the moments at which it acts:
`prepare`, `penalty`, `after_backward`, `after_step`, `edit`. A site is one adapted matrix: W, and dW as factors.

Source: ours, for illustration. It is weight decay on dW, in place of weight decay on the factors.

Departures: none.

Fails: a large `beta` keeps the adapter from learning anything.
"""

from pydantic import NonNegativeFloat
from torch import Tensor

import lowtax as lt


class SmallUpdate(lt.Method):
    """Penalise the squared Frobenius norm of every update."""

    beta: NonNegativeFloat

    def penalty(self, sites: lt.Sites, state: lt.State) -> Tensor | float:
        """Return beta * sum over sites of ||dW||_F^2."""
        return self.beta * sum(site.sq_norm() for site in sites.values())
