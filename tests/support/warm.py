"""What the processes of `forks` share: the libraries, and what transformers makes with the first model.

The fork server imports this module once; each process would need seconds for it.
"""

import gc
import tempfile
from pathlib import Path

from lowtax.common.log import quiet_libraries

quiet_libraries()  # before transformers is imported
# ruff: noqa: E402, F401
from tiny import make_model

import lowtax.cli.main
import lowtax.engines.hf.engine
import lowtax.judges.refusal_words
import lowtax.study.consistency.run
import lowtax.study.frontier
import lowtax.study.study
from lowtax.models.loading import load_model

with tempfile.TemporaryDirectory() as folder:
    load_model(str(make_model(Path(folder))))
gc.freeze()  # else garbage collection in each process would copy all of it
