"""Checkpoints measured on text: what was read right is found so, what was read wrong is named."""

from __future__ import annotations

import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tui_chat.checkpoint import catalog
from tui_chat.engine.check import Check, Tried, check, judged
from tui_chat.engine.events import LoadOptions
from tui_chat.engine.forms import forms
from tui_chat.engine.measure import Measure, clearly
from tui_chat.engine.texts import passages
from tui_chat.engine.turns import CONVERSATION, Spoken, speaks_better, turns
from tui_chat.templates.open import open_template
from tui_chat.tokenizers.open import open_tokenizer

ROOT = Path(__file__).resolve().parents[2]
BASE, CHAT = str(ROOT / "checkpoints/demo-base"), str(ROOT / "checkpoints/demo-chat")
CHARACTERS = ROOT / "tests/fixtures/nanogpt/char-bias"


def checked(path: str | Path, text: str = "", **options: Any) -> Check:
    return check(str(path), LoadOptions(**options), text)[1]


@pytest.mark.parametrize("path", [BASE, CHAT, CHARACTERS / "out-shakespeare-char/ckpt.pt"])
def test_what_was_read_right_has_nothing_to_warn_of(path: str | Path) -> None:
    found = checked(path)
    assert found.warnings == () and not found.why_not
    assert found.nats_per_token < found.chance and found.nats_per_token < found.shuffled
    assert not any(one.better for one in found.tried) and len(found.tried) >= 3


def test_the_loss_is_near_the_one_stored_on_text_of_its_kind() -> None:
    info, found = check(str(CHARACTERS / "out-shakespeare-char/ckpt.pt"), LoadOptions())
    assert "Shakespeare" in found.text  # of the texts that come with the program, its own kind
    assert found.nats_per_token == pytest.approx(info.losses["val"], abs=0.25)
    # One byte a character.
    assert found.bits_per_byte == pytest.approx(found.nats_per_token / math.log(2))


def test_the_loss_is_the_mean_that_scoring_gives(tmp_path: Path) -> None:
    import tui_chat

    path = CHARACTERS / "out-shakespeare-char/ckpt.pt"
    file = tmp_path / "short.txt"
    file.write_text("What is the city but the people?\nTrue, the people are the city.")
    found = checked(path, str(file))
    open_one = tui_chat.open(str(path))
    logprobs = open_one.score(open_one.encode(file.read_text()))[1:]
    assert found.tokens == len(logprobs) and str(file.name) in found.text
    assert found.nats_per_token == pytest.approx(-sum(logprobs) / len(logprobs), abs=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"rope_layout": "interleaved"}, {"rope_layout": "half"}),
        ({"rope_sign": -1}, {"rope_sign": 1}),
    ],
)
def test_positions_that_are_turned_in_another_way_are_recognised(
    wrong: dict[str, object], right: dict[str, object]
) -> None:
    found = checked(BASE, config=wrong)
    best = min((one for one in found.tried if one.better), key=lambda one: one.nats)
    assert best.settings == right and best.bits_per_byte < best.instead
    (warning,) = found.warnings
    assert warning.startswith("positions look ")
    assert all(f"--config {name}={value}" in warning for name, value in right.items())


def test_a_guessed_number_of_heads_is_tried_with_others(tmp_path: Path) -> None:
    info = catalog.describe(str(CHARACTERS / "out-shakespeare-char/ckpt.pt"))
    assert not any("n_head" in form for form in forms(info))
    width_48 = replace(info, inferred=("the file does not say the number of heads: 1 is ...",))
    tried = [form["n_head"] for form in forms(width_48) if "n_head" in form]
    assert tried and info.spec.n_head not in tried and all(48 % int(str(n)) == 0 for n in tried)


def test_a_tokenizer_of_other_ids_shows_in_the_order(tmp_path: Path) -> None:
    with open(CHARACTERS / "data/shakespeare_char/meta.pkl", "rb") as file:
        meta = pickle.load(file)
    letters = [meta["itos"][i] for i in range(len(meta["itos"]))]
    turned = letters[::-1]
    other = {
        "vocab_size": len(turned),
        "itos": dict(enumerate(turned)),
        "stoi": {letter: at for at, letter in enumerate(turned)},
    }
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(other))
    found = checked(
        CHARACTERS / "out-shakespeare-char/ckpt.pt", tokenizer=str(tmp_path / "meta.pkl")
    )
    assert any("tokenizer" in warning for warning in found.warnings)


def test_the_end_of_the_text_beside_it_is_taken(tmp_path: Path) -> None:
    shutil.copytree(CHARACTERS, tmp_path / "run")
    scene = passages()[0].text
    (tmp_path / "run/data/shakespeare_char/input.txt").write_text(("The past. " * 999) + scene)
    found = checked(tmp_path / "run/out-shakespeare-char/ckpt.pt")
    assert found.text.startswith("the end of ") and found.text.endswith("input.txt")
    assert found.tokens > 400 and not found.warnings


def test_without_a_tokenizer_nothing_is_measured_and_that_is_said() -> None:
    found = checked(ROOT / "tests/fixtures/S1/small_vocab/out/ckpt.pt")
    assert "no tokenizer" in found.why_not and "--tokenizer" in found.why_not


def test_characters_without_an_id_are_counted(tmp_path: Path) -> None:
    (tmp_path / "greek.txt").write_text("λόγος and some more words " * 20)
    found = checked(CHARACTERS / "out-shakespeare-char/ckpt.pt", str(tmp_path / "greek.txt"))
    assert any("have no id" in warning for warning in found.warnings)


def test_the_end_of_a_turn_is_where_the_template_has_it() -> None:
    found = checked(CHAT)
    assert found.turn_end is not None and found.turn_end > 0.9
    assert checked(BASE).turn_end is None


def test_a_wrong_layout_shows_in_what_was_tuned_for_turns() -> None:
    found = checked(CHAT, config={"rope_layout": "interleaved"})
    assert "assistant's turns" in found.text
    assert any("--config rope_layout=half" in warning for warning in found.warnings)


@pytest.mark.parametrize("template", ["chatml", "alpaca", "plain"])
def test_a_template_it_was_not_tuned_with_is_named_beside_its_own(template: str) -> None:
    (warning,) = [one for one in checked(CHAT, template=template).warnings if "demo (" in one]
    assert f"the template {template} " in warning and "leave out --template" in warning


def test_control_tokens_that_the_tokenizer_does_not_have_are_a_reason_alone() -> None:
    warnings = checked(BASE, template="chatml").warnings
    assert any("no token <|im_start|>, <|im_end|>" in warning for warning in warnings)
    assert not any("no token" in warning for warning in checked(BASE, template="alpaca").warnings)


def test_the_texts_of_the_assistant_are_where_the_template_put_them() -> None:
    info = catalog.describe(CHAT)
    tokenizer = open_tokenizer(info.tokenizer, info.spec)
    template = open_template(info.template, tokenizer)
    assert template is not None
    found = turns(template, tokenizer, info.stop_ids)
    assert found is not None
    said = [one.text for one in CONVERSATION if one.role == "assistant"]
    for text, place, end in zip(said, found.texts, found.ends, strict=True):
        assert b"".join(tokenizer.token_bytes(found.ids[at]) for at in place) == text.encode()
        assert end == place.stop and found.ids[end] in template.stop_ids


def test_a_template_whose_ends_are_known_is_left_alone() -> None:
    known, other = Spoken([[-4.0] * 20], 0.9), Spoken([[-1.0] * 20], None)
    assert not speaks_better(other, known, 600)
    assert speaks_better(other, Spoken([[-4.0] * 20], 0.01), 600)
    assert not speaks_better(Spoken([[-9.0] * 20], None), Spoken([[-12.0] * 20], None), 600)


def test_a_few_boundless_mistakes_do_not_hide_the_rest() -> None:
    one, two = Measure([-0.1] * 38 + [-1.0, -90.0], 40), Measure([-2.1] * 38 + [-90.0, -1.0], 40)
    assert not clearly(one, two, paired=True)
    assert clearly(one.doubted(600), two.doubted(600), paired=True)


# ---- the verdict, by hand


@pytest.fixture
def good() -> Check:
    return Check(
        text="t", tokens=500, bytes=1500, nats_per_token=2.0, bits_per_byte=1.0, chance=6.0,
        frequency=4.0, shuffled=7.0,
    )  # fmt: skip


def verdict(found: Check, *, ordered: bool = True, seen: bool = True, **info: Any) -> list[str]:
    known = catalog.describe(BASE)
    return list(judged(found, replace(known, **info), seen=seen, ordered=ordered))


def test_a_stored_loss_far_below_is_a_reason_on_text_of_its_kind_alone(good: Check) -> None:
    assert verdict(good, losses={"val": 1.9}) == []
    assert "stored loss 1.10" in verdict(good, losses={"val": 1.1})[0]
    assert verdict(good, losses={"val": 1.1}, seen=False) == []
    assert verdict(good, losses={"val": 1.1}, mode="chat") == []


def test_a_template_without_its_end_is_doubted(good: Check) -> None:
    assert verdict(replace(good, turn_end=0.4), mode="chat", losses={}) == []
    (said,) = verdict(replace(good, turn_end=1e-5), mode="chat", losses={})
    assert "another template" in said
    assert verdict(replace(good, turn_end=1e-5), mode="raw", losses={}) == []


def test_worse_than_counting_than_chance_or_no_number_at_all(good: Check) -> None:
    assert "counting" in verdict(replace(good, nats_per_token=4.5))[0]
    assert "worse than chance" in verdict(replace(good, nats_per_token=9.0))[0]
    assert "not finite" in verdict(replace(good, nats_per_token=math.nan))[0]


def test_the_best_of_the_better_forms_is_named_and_nothing_else(good: Check) -> None:
    tried = (
        Tried(settings={"rope_sign": -1}, nats=1.5, bits_per_byte=0.8, instead=1.0, better=True),
        Tried(
            settings={"rope_layout": "interleaved"},
            nats=1.0, bits_per_byte=0.5, instead=1.0, better=True,
        ),
        Tried(
            settings={"activation": "relu"}, nats=0.1, bits_per_byte=0.1, instead=1.0, better=False
        ),
    )  # fmt: skip
    (said,) = verdict(replace(good, tried=tried))
    assert said.startswith("positions look interleaved: 0.50 instead of 1.00 bits a byte")


def test_a_difference_must_be_larger_than_its_error() -> None:
    wide = Measure([-1.0, -9.0] * 20, 40)
    assert not clearly(wide, Measure([-1.4, -9.4] * 20, 40))
    assert clearly(wide, Measure([-1.4, -9.4] * 20, 40), paired=True)
    assert not clearly(wide, Measure([-1.01, -9.01] * 20, 40), paired=True)
