"""The tokenizer that a training used: the one its TOML names, relative to where it was started, or
one that lies in or above the run.
"""

from __future__ import annotations

import os
from dataclasses import replace

from tui_chat.checkpoint.files import shown_name, shown_path
from tui_chat.checkpoint.gpt2 import GPT2_IDS
from tui_chat.checkpoint.hf_tokenizer import HFTokenizer, around_vocabulary, hf_tokenizer
from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.checkpoint.kempnerforge.training_toml import Training, above
from tui_chat.checkpoint.plain import mapping
from tui_chat.errors import CheckpointError

_GPT2 = frozenset(("gpt2", "openai-community/gpt2"))
_FOLDERS = ("", "tokenizer")


def tokenizer_of(
    folder: str, training: Training, given: object = None, *, rows: int = GPT2_IDS
) -> HFTokenizer:
    """The tokenizer of the checkpoint in `folder`, whose embedding has `rows`; hint kind "none" and
    a warning where there is none. `given` is what the user says in place of the TOML's
    `tokenizer_path`."""
    said = training.data.get("tokenizer_path") if given is None else given
    said = said if isinstance(said, str) else ""
    place = _named(said, folder, training) if said else ""
    how = f"{shown_name(training.path)} names {said[:80]}" if given is None else "given by the user"
    if not place:
        if said in _GPT2 and rows < GPT2_IDS and given is None:
            return _none(f"{how}, which has {GPT2_IDS} ids, the model {rows}")
        if said in _GPT2:
            hint = TokenizerHint(kind="tiktoken", name="gpt2", source=how, drop_special=True)
            return HFTokenizer(hint=hint, stop_ids=(50256,))
        place = _found(folder)
        how = f"found in {shown_path(place)}"
    if not place:
        how = (
            f"the tokenizer {said[:80]!r} is not on this machine"
            if said
            else "nothing says which tokenizer it was trained with"
        )
        return _none(how)
    found = hf_tokenizer(place)
    # The trainer hands text to the library as it is, and leaves control tokens out of a reply.
    hint = replace(
        found.hint,
        source=how,
        drop_special=True,
        text_specials=_added(found.hint),
        with_start=True,
    )
    return replace(found, hint=hint)


def _none(reason: str) -> HFTokenizer:
    return HFTokenizer(
        hint=TokenizerHint(kind="none", source=reason),
        warnings=(f"{reason}: name it with --tokenizer; until then only ids are shown",),
    )


def _added(hint: TokenizerHint) -> tuple[str, ...]:
    """The tokens that the library finds in any text."""
    if hint.kind != "tokenizer.json":
        return ()
    try:
        rows = around_vocabulary(hint.path).get("added_tokens")
    except CheckpointError:
        return ()
    texts = [mapping(row).get("content") for row in rows] if isinstance(rows, list) else []
    return tuple(text for text in texts if isinstance(text, str) and text)


def _found(folder: str) -> str:
    """The nearest directory with a tokenizer.json, "" if there is none."""
    for level in above(folder):
        for inside in _FOLDERS:
            place = os.path.join(level, inside) if inside else level
            if os.path.isfile(os.path.join(place, "tokenizer.json")):
                return place
    return ""


def _named(said: str, folder: str, training: Training) -> str:
    """The directory that `tokenizer_path` means: a path, relative to any directory
    from which training may have been started, or a name in Hugging Face's cache."""
    path = os.path.expanduser(said)
    places = [path] if os.path.isabs(path) else []
    bases = [*above(os.path.dirname(training.path)), *above(folder)] if training.path else []
    for base in bases:
        places.append(os.path.join(base, path))
        if os.path.isabs(path):  # a copy of it that moved along
            places.append(os.path.join(base, os.path.basename(os.path.normpath(path))))
    for place in (*places, *_cached(said)):
        if place.endswith("tokenizer.json") and os.path.isfile(place):
            return os.path.dirname(os.path.abspath(place))
        if os.path.isfile(os.path.join(place, "tokenizer.json")) or os.path.isfile(
            os.path.join(place, "tokenizer.model")
        ):
            return os.path.abspath(place)
    return ""


def _cached(name: str) -> list[str]:
    """Where Hugging Face keeps what it fetched under `name`, the newest first."""
    parts = name.split("/")
    if len(parts) > 2 or not all(part and part.strip(".") == part for part in parts):
        return []
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    hub = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    snapshots = os.path.join(hub, "--".join(("models", *parts)), "snapshots")
    try:
        found = [entry.path for entry in os.scandir(snapshots) if entry.is_dir()]
    except OSError:
        return []
    return sorted(found, key=os.path.getmtime, reverse=True)
