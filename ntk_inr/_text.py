"""Text that came from outside."""

import re


def printable(text: str) -> str:
    """Return text that came from outside, such as a file's name, as one line that every file and console can hold.

    Bytes that are not UTF-8, which Python has as surrogates, and control characters become replacement characters.
    """
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "\ufffd", text)
