"""`inspect --check` and `inspect --preview`: was it read right, and what does the model get?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tui_chat.checkpoint.card import losses_in_words
from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.cli.output import Progress, columns, hanging, labelled, write_line
from tui_chat.conversation import Turn
from tui_chat.engine.events import LoadOptions
from tui_chat.errors import TuiChatError

if TYPE_CHECKING:
    from tui_chat.engine.check import Check

SAMPLE = (
    Turn("system", "You are a helpful assistant."),
    Turn("user", "Hello!"),
    Turn("assistant", "Hello! How can I help you?"),
    Turn("user", "What is 2 + 2?"),
)


def measured(path: str, options: LoadOptions, text: str) -> tuple[CheckpointInfo, Check]:
    """The checkpoint and how it predicts text. Raises CheckpointError, UsageError."""
    with Progress() as progress:
        progress("starting torch")
        from tui_chat.engine.torch_import import import_torch

        import_torch()
        from tui_chat.engine.check import check

        return check(path, options, text, progress)


def show_check(check: Check, info: CheckpointInfo) -> None:
    """The figures, then what looks wrong."""
    width = columns()
    write_line("\ncheck")
    if check.why_not:
        write_line(hanging("! ", check.why_not, width))
        return
    stored = f" · stored: {losses_in_words(info.losses)}" if info.losses else ""
    rows = [
        ("text", f"{check.text}: {check.tokens:,} tokens, {check.bytes:,} bytes"),
        ("bits a byte", f"{check.bits_per_byte:.3f}"),
        ("nats a token", f"{check.nats_per_token:.3f}{stored}"),
        (
            "beside",
            f"{check.frequency:.2f} nats by counting tokens · {check.chance:.2f} nats by chance · "
            f"{check.shuffled:.2f} nats with the tokens shuffled",
        ),
        ("other forms", _tried(check)),
        ("end of turn", "" if check.turn_end is None else f"probability {check.turn_end:.3g}"),
    ]
    write_line(labelled([row for row in rows if row[1]], width))
    for warning in check.warnings:
        write_line(hanging("! ", warning, width))
    if not check.warnings:
        write_line("Nothing looks wrong.")


def _tried(check: Check) -> str:
    """How many other forms were tried, and the best of them."""
    if not check.tried:
        return ""
    best = min(check.tried, key=lambda one: one.nats)
    settings = " ".join(f"{name} {value}" for name, value in best.settings.items())
    same = math.isclose(best.instead, check.bits_per_byte, rel_tol=1e-6)
    where = "" if same else ", on the first of these tokens"
    return (
        f"{len(check.tried)} tried, the best ({settings}) {best.bits_per_byte:.2f} beside "
        f"{best.instead:.2f} bits a byte{where}"
    )


def preview(info: CheckpointInfo) -> dict[str, object]:
    """What the template makes of a sample conversation: ids, and text with control tokens apart.
    Raises CheckpointError, UsageError."""
    from tui_chat.engine.questions import spelled
    from tui_chat.templates.open import open_template
    from tui_chat.tokenizers.open import open_tokenizer

    tokenizer = open_tokenizer(info.tokenizer, info.spec)
    template = open_template(info.template, tokenizer, text_start=info.text_start)
    if template is None:
        return {"ids": [], "pieces": [], "note": "there is no chat template"}
    try:
        rendered = template.render(SAMPLE)
    except TuiChatError:  # some know no system prompt
        rendered = template.render(SAMPLE[1:])
    pieces = spelled(tokenizer, rendered.ids)
    return {
        "ids": rendered.ids,
        "pieces": [{"text": text, "control": control} for text, control in pieces],
        "note": rendered.note,
    }


def show_preview(found: dict[str, object]) -> None:
    """The text as the model gets it; control tokens between brackets, which content never has."""
    pieces, ids, note = found["pieces"], found["ids"], found["note"]
    assert isinstance(pieces, list) and isinstance(ids, list)
    write_line(f"\npreview, {len(ids)} tokens; control tokens stand between ⟦ and ⟧")
    text = "".join(f"⟦{one['text']}⟧" if one["control"] else one["text"] for one in pieces)
    if text:
        write_line(text)
    if note:
        write_line(f"! {note}")
