"""The sampling panel: every knob by key, by mouse and by typing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tui_chat.errors import UsageError
from tui_chat.sampling import KNOBS, PRESETS, SamplingParams, knob
from tui_chat.tui.widgets import slider
from tui_chat.tui.widgets.knob_text import parse_value, typed_form, wrapped
from tui_chat.tui.widgets.sampling_panel import SamplingPanel

from .host import Host, screen_rows


class PanelHost(Host):
    CSS = "SamplingPanel { width: 1fr; }"


def host_of(params: SamplingParams | None = None) -> tuple[PanelHost, SamplingPanel]:
    panel = SamplingPanel(params)
    return PanelHost(panel, SamplingPanel.Changed), panel


def row_of(host: Host, label: str) -> str:
    return next(row for row in screen_rows(host) if label in row)


@pytest.mark.parametrize("width", [36, 38, 80, 120])
async def test_every_knob_has_a_row_and_the_chain_stands_below(width: int) -> None:
    host, panel = host_of()
    async with host.run_test(size=(width, 20)):
        rows = screen_rows(host)
        for item in KNOBS:
            assert any(item.label.strip() in row for row in rows)
        assert "T 0.80 › top-k 50 › sample" in "\n".join(rows)
        assert all(len(row) <= width for row in rows)
        assert panel.size.height <= (16 if width < 60 else 13)


async def test_what_is_not_neutral_is_marked_and_what_is_void_says_why() -> None:
    host, panel = host_of(SamplingParams(top_p=0.9))
    async with host.run_test(size=(80, 16)) as pilot:
        assert row_of(host, "top-p").startswith(" •top-p")
        assert row_of(host, "min-p").startswith("  min-p")
        assert row_of(host, "max new").startswith("  max new")
        panel.params = SamplingParams(temperature=0.0, top_p=0.9)
        await pilot.pause()
        assert "temperature 0 is greedy" in row_of(host, "top-p")
        assert not host.messages  # set from outside: nothing to tell


async def test_arrows_turn_knobs_and_tell_once_a_refresh() -> None:
    host, panel = host_of()
    async with host.run_test(size=(80, 16)) as pilot:
        panel.focus()
        for _ in range(5):
            panel.action_step(1)
        await pilot.pause()
        assert [m.params.temperature for m in host.messages] == [1.05]
        await pilot.press("left", "shift+left", "down", "right")
        await pilot.pause()
        assert panel.params == SamplingParams(temperature=0.75, top_k=100)
        assert host.messages[-1].params == panel.params
        assert "*edited" in screen_rows(host)[0]


async def test_digits_type_a_value_and_a_bad_one_says_the_range() -> None:
    host, panel = host_of()
    async with host.run_test(size=(80, 16)) as pilot:
        panel.focus()
        await pilot.press("1", "full_stop", "3", "enter")
        assert panel.params.temperature == 1.3
        await pilot.press("9", "enter")
        await pilot.pause()
        assert panel.params.temperature == 1.3
        assert any("lies between 0 and 5" in row for row in screen_rows(host))
        await pilot.press("2", "escape")
        assert panel.params.temperature == 1.3 and not panel.typing
        await pilot.press("enter", "0", "enter")
        assert panel.params.temperature == 0.0
        await pilot.press("0")
        assert panel.params.temperature == 1.0
        await pilot.press("d")
        assert panel.params.temperature == 0.8


async def test_letters_are_text_while_stop_texts_are_typed() -> None:
    host, panel = host_of()
    async with host.run_test(size=(80, 16)) as pilot:
        panel.focus()
        await pilot.press(*["down"] * 20)
        await pilot.press("enter", *"n: |r", "backslash", "n", "enter")
        assert panel.params.stop == ("n:", "r\n")
        await pilot.press("backspace")
        assert panel.params.stop == ()


async def test_presets_neutralise_and_seed() -> None:
    host, panel = host_of(SamplingParams(seed=7))
    async with host.run_test(size=(80, 16)) as pilot:
        panel.focus()
        await pilot.press("p")
        assert panel.preset == "greedy" and panel.params.seed == 7
        assert panel.params.temperature == PRESETS["greedy"].temperature
        await pilot.press("P")
        assert panel.preset == "default"
        await pilot.press("up", "right")
        assert panel.preset == "greedy"
        await pilot.press("n")
        assert panel.params.temperature == 1.0 and panel.params.top_k == 0
        await pilot.press("r")
        assert panel.params.seed is None
        await pilot.press("r")
        assert panel.params.seed is not None


async def test_the_mouse_drags_a_slider_and_turns_the_wheel() -> None:
    host, panel = host_of()
    async with host.run_test(size=(80, 16)) as pilot:
        row = next(y for y, text in enumerate(screen_rows(host)) if "temperature" in text)
        left, cells = panel._slider_x, panel._slider_cells
        await pilot.mouse_down(SamplingPanel, offset=(left, row))
        assert panel.params.temperature == 0.0
        await pilot.hover(SamplingPanel, offset=(left + cells - 1, row))
        assert panel.params.temperature == 2.0
        await pilot.mouse_up(SamplingPanel, offset=(left + cells - 1, row))
        await pilot.hover(SamplingPanel, offset=(left + 2, row))
        assert panel.params.temperature == 2.0
        await pilot._post_mouse_events([_wheel_up()], SamplingPanel, (left, row + 1), 0)
        assert panel.params.top_k == 100


def _wheel_up() -> type:
    from textual.events import MouseScrollUp

    return MouseScrollUp


async def test_a_low_panel_shows_the_knob_under_the_cursor() -> None:
    host, panel = host_of()
    async with host.run_test(size=(36, 8)) as pilot:
        panel.styles.height = 8
        panel.focus()
        await pilot.press(*["down"] * 8)
        await pilot.pause()
        assert any(row.startswith("▸ stop") for row in screen_rows(host))


@given(st.lists(st.text(max_size=8), max_size=4))
def test_stop_texts_survive_being_typed(texts: list[str]) -> None:
    wanted = tuple(t for t in texts if t.strip())
    if any(t != t.strip() and t.strip(" \n\r\t") != t.strip() for t in wanted):
        return  # exotic blanks at an end are dropped
    if any(len(t) - len(t.lstrip(" ")) > 1 or len(t) - len(t.rstrip(" ")) > 1 for t in wanted):
        return
    assert parse_value(knob("stop"), typed_form(wanted)) == wanted


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0,7", 0.7), ("top_k", "off", 0), ("top_k", "40", 40),
        ("seed", "random", None), ("seed", "2147483647", 2**31 - 1),
    ],
)  # fmt: skip
def test_values_are_read_as_people_write_them(name: str, text: str, value: object) -> None:
    assert parse_value(knob(name), text) == value


@pytest.mark.parametrize(("name", "text"), [("top_p", "2"), ("top_k", "1.5"), ("seed", "x")])
def test_what_cannot_be_a_value_is_refused(name: str, text: str) -> None:
    with pytest.raises(UsageError):
        parse_value(knob(name), text)


@given(st.sampled_from([k for k in KNOBS if slider.has_slider(k)]), st.floats(0, 1))
def test_a_place_on_a_slider_is_a_value_near_that_place(item: object, fraction: float) -> None:
    from tui_chat.sampling import Knob

    assert isinstance(item, Knob)
    value = slider.value_at(item, fraction)
    assert item.checked(value) == value
    if item.name != "max_new_tokens":  # its first steps of 16 are wide on a logarithmic slider
        stops = len(item.ladder) - 1 if item.ladder else 10
        assert abs(slider.fraction_of(item, value) - fraction) <= 0.5 / stops + 1e-9
    assert len("".join(slider.draw(item, value, 20))) == 20


def test_sentences_are_wrapped_and_cut() -> None:
    assert wrapped("one two three", 7, 3) == ["one two", "three"]
    assert wrapped("one two three four", 7, 2) == ["one two", "three…"]
