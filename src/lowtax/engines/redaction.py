"""Secrets in what a server sends: removed before a text reaches a row, a message or a file.

A server knows the key that it was sent, and may repeat it: in an error, in a reply, escaped, encoded or torn apart by
spaces. Here the usual ways of writing a key are found. A server that wants to hide a key from this can (each letter
moved by one): use a separate key for a server that you do not trust.
"""

import base64
import re
from collections.abc import Iterable, Iterator

HIDDEN = "***"
SHORTEST = 12  # characters; a shorter key is a placeholder such as EMPTY or lm-studio, and may be a word of a reply
APART = r"(?:\\[nrt]|[\s\x00-\x1f\x7f-\xa0\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]){0,40}"


class Redaction:
    """The way in which secrets are removed.

    Args:
        secrets: keys and passwords; those with fewer than SHORTEST characters are removed from messages alone.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        distinct = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
        self._short = [secret for secret in distinct if len(secret) < SHORTEST]
        long = [secret for secret in distinct if len(secret) >= SHORTEST]
        self._forms = [form for secret in long for form in _encoded(secret)]
        self._spellings = [re.compile(APART.join(map(_spelled, secret))) for secret in long]

    def text(self, text: str) -> str:
        """Return a text without long secrets, however they are written."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, HIDDEN)
        for spelling in self._spellings:
            text = spelling.sub(HIDDEN, text)
        return text

    def message(self, text: str) -> str:
        """Return a text without any of the secrets."""
        text = self.text(text)
        for secret in self._short:
            text = text.replace(secret, HIDDEN)
        return text


def _spelled(character: str) -> str:
    """Return a pattern of a character as it is, in another case, or escaped as in URLs, JSON, programs and HTML.

    Every alternative begins with another letter, so that a search skips other letters fast.
    """
    spellings = {re.escape(form) for each in {character, character.swapcase()} for form in (each, f"\\{each}")}
    for code in {ord(character), ord(character.swapcase())}:
        digits = "".join(f"[{digit.lower()}{digit.upper()}]" for digit in f"{code:02x}")
        spellings |= {
            f"%{digits}",
            rf"\\u00{digits}",
            rf"\\x{digits}",
            f"&#0{{0,5}}{code};",
            f"&#[xX]0{{0,5}}{digits};",
        }
    return f"(?:{'|'.join(sorted(spellings))})"


def _encoded(secret: str) -> Iterator[str]:
    """Yield the parts of a secret in base64, at each place within a longer text, and in hexadecimal digits."""
    data = secret.encode()
    for before in range(3):
        whole = base64.b64encode(bytes(before) + data).decode()
        part = whole[-(-8 * before // 6) : 8 * (before + len(data)) // 6]
        yield part
        yield part.translate(str.maketrans("+/", "-_"))
    yield data.hex()
    yield data.hex().upper()
