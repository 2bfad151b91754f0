"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tui_chat.engine.stops import StopText

TEXTS = st.text(alphabet="ab\n", max_size=12)


@given(pieces=st.lists(TEXTS, max_size=8), stops=st.lists(TEXTS, max_size=3))
def test_any_cutting_shows_the_text_before_the_first_stop(
    pieces: list[str], stops: list[str]
) -> None:
    whole = "".join(pieces)
    ends = [at for stop in stops if stop and (at := whole.find(stop)) >= 0]
    stopper, shown, hit = StopText(stops), "", ""
    for piece in pieces:
        text, hit = stopper.push(piece)
        shown += text
        if hit:
            break
    if not hit:
        shown += stopper.flush()
    # A stop that ends sooner may be heard before one that begins sooner: then it is the end.
    heard = next((n for n in range(len(whole) + 1) if _ends(whole[:n], stops)), None)
    if heard is None:
        assert (shown, hit, ends) == (whole, "", [])
    else:
        assert hit
        assert shown + hit == whole[: len(shown) + len(hit)]
        assert not _ends(shown, stops)


def _ends(text: str, stops: list[str]) -> bool:
    return any(stop and stop in text for stop in stops)


def test_only_what_may_become_a_stop_is_held_back() -> None:
    stopper = StopText(["\nUser:"])
    assert stopper.push("hello\nUs") == ("hello", "")
    assert stopper.push("e") == ("", "")
    assert stopper.push("d\n") == ("\nUsed", "")
    assert stopper.flush() == "\n"


def test_of_two_stops_at_one_place_the_longer_is_named() -> None:
    assert StopText(["ab", "abc"]).push("xabc") == ("x", "abc")
