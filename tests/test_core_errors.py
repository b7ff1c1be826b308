"""Control characters in names and labels never reach a terminal."""

import pytest

from ferkit.core.errors import escape_control


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("photo 1.jpg", "photo 1.jpg"),
        ("Ärger, 怒り, 😀", "Ärger, 怒り, 😀"),
        ("\x1b[2Jred", r"\x1b[2Jred"),
        ("two\nlines\r\tand a tab", r"two\nlines\r\tand a tab"),
        ("\x9b31m\x7f\x00", r"\x9b31m\x7f\x00"),
        ("gnp.\u202egpj", r"gnp.\u202egpj"),
        ("bad\udcff", r"bad\udcff"),
    ],
)
def test_escape_control_leaves_text_and_escapes_what_steers_a_terminal(text: str, escaped: str) -> None:
    assert escape_control(text) == escaped
