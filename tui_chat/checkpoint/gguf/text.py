"""What a GGUF file says of its tokenizer, its control tokens and its chat template."""

from __future__ import annotations

from tui_chat.checkpoint.description import Description
from tui_chat.checkpoint.gguf.keys import Keys
from tui_chat.checkpoint.gguf.reader import LongList, entry_of
from tui_chat.checkpoint.gguf.splits import GUESS, SPLITS, Split
from tui_chat.checkpoint.hf_tokenizer import MAX_TEMPLATE, TEMPLATE_NAME
from tui_chat.checkpoint.info import TemplateHint, TokenizerHint

_G = "tokenizer.ggml."
KINDS = ("gpt2", "llama")
"""Byte-level BPE, and SentencePiece's BPE with scores."""
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def describe_text(keys: Keys, path: str, rows: int, found: Description) -> None:
    """Tokenizer, begin-of-text, template and stops into the description. Raises CheckpointError
    for a damaged file."""
    kind, tokens = keys.text(f"{_G}model"), keys.get(f"{_G}tokens")
    if not isinstance(tokens, (LongList, list)) or kind not in KINDS:
        what = f"its tokenizer is of the kind {kind[:40]!r}, which is not read"
        if kind in ("", "none", "no_vocab"):
            what = f"there is no tokenizer in it for its {rows} ids"
        found.warnings.append(f"{what}: name one with --tokenizer; until then only ids are shown")
        return
    count = tokens.count if isinstance(tokens, LongList) else len(tokens)
    found.tokenizer = TokenizerHint(
        kind="gguf", name=kind, path=path, source="in the file", vocab_size=count
    )
    begins = kind == "llama"
    if kind == "gpt2":
        begins = _split(keys, found).begins

    def token(name: str) -> int | None:
        value = keys.get(f"{_G}{name}")
        return value if isinstance(value, int) and 0 <= value < count else None

    bos, eos = token("bos_token_id"), token("eos_token_id")
    if kind == "llama":  # llama.cpp's own, where a file leaves them out
        bos, eos = (1 if bos is None else bos), (2 if eos is None else eos)
    said = keys.get(f"{_G}add_bos_token")
    if said is True or (said is None and begins):
        found.text_start = () if bos is None else (bos,)
    ends = dict.fromkeys(filter(lambda t: t is not None, (eos, *map(token, _ENDS))))
    found.stop_ids = tuple(t for t in ends if t is not None)
    template = keys.text("tokenizer.chat_template")
    if len(template) > MAX_TEMPLATE:
        found.warnings.append(f"its chat template has {len(template):,} characters: left out")
    elif template:
        names = {"bos_token": bos, "eos_token": eos, "unk_token": token("unknown_token_id")}
        found.template = TemplateHint(
            name=TEMPLATE_NAME,
            source="tokenizer.chat_template in the file",
            jinja=template,
            tokens={
                name: str(entry_of(path, tokens, at))
                for name, at in names.items()
                if at is not None
            },
        )
        found.mode = "chat"


def _split(keys: Keys, found: Description) -> Split:
    name = keys.text(f"{_G}pre")
    split = SPLITS.get(name)
    if split is None:
        found.warnings.append(
            f"how its tokenizer splits words ({name[:40]!r}) is not known: GPT-2's way is taken, "
            "so some texts may get other ids"
            if name
            else "it does not say how its tokenizer splits words: GPT-2's way is taken, so some "
            "texts may get other ids"
        )
    return split or GUESS
