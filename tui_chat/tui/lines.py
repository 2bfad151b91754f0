"""What the title row, the status rows and the first page say about a chat. Pure: no widget is
touched here.
"""

from __future__ import annotations

from pathlib import Path

from tui_chat.checkpoint.info import TemplateHint
from tui_chat.display import one_line
from tui_chat.engine import events as ev
from tui_chat.sampling import SamplingParams, chain, knob
from tui_chat.settings import bundled
from tui_chat.tui import words
from tui_chat.tui.chat import Chat
from tui_chat.tui.transcript import reason_words
from tui_chat.tui.widgets.status import Level, Status, Title, Tone

DEMO = (
    "This is the bundled demo: about one million weights, trained on a few plays and on made-up "
    "dialogues. It greets, does small sums, remembers your name, follows a simple system prompt "
    "and explains the keys of this app. It knows nothing else."
)
DEMO_BASE = (
    "This is the base model of the bundled demo: about one million weights, trained on a few "
    "plays. It goes on with a text in their manner; it cannot answer."
)


def title(chat: Chat) -> Title:
    """Which checkpoint answers, in which mode, in which chat."""
    name, guessed = "no checkpoint: Ctrl+O opens one", False
    facts: tuple[str, ...] = ()
    if chat.loaded:
        info = chat.loaded.info
        name, guessed = info.label, bool(info.warnings)
        losses = [f"{k} {info.losses[k]:.3f}" for k in ("val", "train") if k in info.losses]
        facts = (
            words.count(info.parameters),
            chat.loaded.dtype,
            chat.loaded.device,
            *losses[:1],
            *([_template(info.template)] if info.template.name else []),
            info.format,
        )
    if chat.loading:
        name = f"loading {one_line(Path(chat.load_path).name, 60)} …"
        facts, guessed = (), False
    conversation = chat.conversation
    first = conversation.children(None)[:1]
    heading = conversation.title or "".join(conversation[message].text for message in first)
    return Title(
        name=name,
        facts=facts,
        mode=conversation.mode,
        chat=one_line(heading[:200], 60),
        guessed=guessed,
    )


def _template(hint: TemplateHint) -> str:
    """The file a template stands in is no name of it."""
    unnamed = hint.jinja and hint.name in ("chat_template", "default")
    return "own template" if unnamed else f"template {hint.name}"


def status(
    chat: Chat, *, said: str = "", unread: int = 0, error: str = "", receipt: str = ""
) -> Status:
    """What happens now, the knobs in force, and how full the context is. `said` is a sentence for a
    moment, in place of what happens.
    """
    activity, tone, progress = _activity(chat)
    if said and not chat.loading:
        activity, tone, progress, receipt = said, "note", -1.0, ""
    elif error:
        activity, tone = error, "error"
    limit = chat.loaded.context_length if chat.loaded else 0
    memory, short, level = _memory(chat.memory if chat.loaded else None)
    return Status(
        activity=one_line(activity, 400),
        tone=tone,
        detail=f"↓ {unread} new lines (Ctrl+End)" if unread else one_line(receipt, 120),
        knobs=_knobs(chat.params),
        used=min(chat.context_used, limit),
        limit=limit,
        memory=memory,
        memory_short=short,
        memory_level=level,
        progress=progress,
    )


def _memory(memory: ev.Memory | None) -> tuple[str, str, Level]:
    """What there is to say of it, the same in a few letters, and how bad it is."""
    if memory is None:
        return "", "", "calm"
    left = words.size(max(0, memory.free + memory.idle))
    if not memory.fits:
        what = "memory too small"
        return f"{what}: {words.size(memory.needs)} needed, {left} free", what, "full"
    if memory.tight:
        return f"memory tight: {left} free", "memory tight", "tight"
    used = memory.weights + memory.caches
    return f"mem {words.size(used)} of {words.size(used + memory.free)}", "", "calm"


def _knobs(params: SamplingParams) -> str:
    seed = knob("seed").shown(params.seed)
    return f"{chain(params)} · max {params.max_new_tokens} · seed {seed}"


def _activity(chat: Chat) -> tuple[str, Tone, float]:
    """Words, their tone, and how far it is (0..1, negative: that cannot be said)."""
    reply = chat.reply
    if chat.loading:
        waits = ", your prompt waits for it" if chat.waiting else ""
        return f"{chat.loading.stage}{waits} · Esc cancels", "busy", chat.loading.done
    if reply and chat.waiting:
        return "your prompt waits for a checkpoint: Ctrl+O opens one", "busy", -1.0
    if reply and reply.stopping:
        return "stopping …", "busy", -1.0
    if reply and reply.first_at:
        parts = ["writing", f"{reply.tokens} tok", f"{reply.tokens_per_second:.0f} tok/s"]
        if chat.draft.label:
            parts.append(f"{chat.draft.label}{_right(reply.accepted, reply.drafted)}")
        return " · ".join([*parts, "Esc stops"]), "busy", -1.0
    if reply:
        done, total = reply.prefill
        if total > done:
            return f"reading the prompt {done}/{total} · Esc stops", "busy", done / total
        return "reading the prompt · Esc stops", "busy", -1.0
    if chat.last:
        return ended(chat.last), "done", -1.0
    if not chat.loaded:
        return "no checkpoint is open: Ctrl+O opens one", "idle", -1.0
    return " · ".join(filter(None, ("ready", chat.draft.label))), "idle", -1.0


def _right(accepted: int, drafted: int) -> str:
    """What share of a draft's proposals was right."""
    return f" {accepted / drafted:.0%}" if drafted else ""


def ended(finished: ev.Finished) -> str:
    """Why a reply ended, and how it went."""
    stats = finished.stats
    why = reason_words(finished.reason)
    if finished.reason == "stop":
        own = finished.detail.startswith("token ")
        why = "the model stopped" if own else f"stopped at {finished.detail!r}"
    parts = [why, f"{stats.new_tokens} tok"]
    if stats.acceptance is not None:
        parts.append(f"draft {stats.acceptance:.0%}")
    if stats.decode_seconds > 0 and stats.new_tokens > 1:
        parts.append(f"{stats.tokens_per_second:.0f} tok/s")
    parts.append(f"prompt {stats.prompt_tokens}, {stats.reused_tokens} reused")
    parts.append(f"first {stats.prefill_seconds:.2f} s")
    return " · ".join(parts)


def is_demo(path: str) -> bool:
    return Path(path).is_relative_to(bundled("checkpoints"))


def welcome(chat: Chat) -> str:
    """The page of an empty conversation."""
    parts = ["Talk to the language model you trained."]
    if chat.loaded:
        info = chat.loaded.info
        if is_demo(info.path):
            parts.append(DEMO if info.mode == "chat" else DEMO_BASE)
        elif info.description:
            parts.append(info.description)
        if chat.conversation.mode == "chat":
            parts.append("Write a message below.")
        elif info.tokenizer.kind == "none":
            parts.append(
                "No tokenizer was found: write token ids below, such as 15 496 29. Started with "
                "--tokenizer PATH, the app reads and writes text."
            )
        else:
            parts.append("Write a beginning below; the model goes on from it.")
    parts.append(
        "Ctrl+O opens a checkpoint of yours, Ctrl+S turns the knobs, Ctrl+R retries, Esc stops, "
        "F1 helps."
    )
    return "\n\n".join(parts)
