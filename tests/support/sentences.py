"""What every error of a user's is: one sentence, at once."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from lowtax.common.errors import UserError


def refused(read: Callable[[], Any], *words: str) -> str:
    """Return the one sentence of an error, which comes at once and has these words."""
    began = time.process_time()
    with pytest.raises(UserError) as error:
        read()
    sentence = str(error.value)
    assert time.process_time() - began < 3, sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 700, sentence
    assert all(word in sentence for word in words), sentence
    return sentence
