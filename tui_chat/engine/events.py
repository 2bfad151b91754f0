"""What passes between the worker thread and whoever talks to it: frozen, without tensors, without
torch.

Requests go in through `Worker.send`, events come out through the `emit` callable it was given,
in order, from the worker thread. A *lane* is one checkpoint in use with its own cache; a
*request id* names one reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.conversation import Mode, StopReason, Turn
from tui_chat.errors import TuiChatError
from tui_chat.sampling import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What a user may say about a checkpoint beyond its path; "" means choose."""

    step: int | None = None
    device: str = ""
    dtype: str = ""
    kv_cache: str = ""  # "int8": keys and values in a quarter of float32's memory
    compile: bool = False  # for a GPU, by torch, while one already talks
    tokenizer: str = ""
    template: str = ""
    config: Mapping[str, object] = field(default_factory=dict)
    config_file: str = ""
    template_variables: Mapping[str, object] = field(default_factory=dict)

    def for_draft(self) -> LoadOptions:
        """How to open what drafts for a checkpoint that is opened like this."""
        return LoadOptions(device=self.device, dtype=self.dtype, tokenizer=self.tokenizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What to answer: turns (chat), one text (raw), or token ids given directly."""

    mode: Mode = "chat"
    turns: tuple[Turn, ...] = ()
    text: str = ""
    ids: tuple[int, ...] | None = None
    continue_last: bool = False  # go on with the last assistant turn


# ---- requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    lane: str
    path: str
    options: LoadOptions = field(default_factory=LoadOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelLoad:
    lane: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """`seed` None: the worker draws one and says which in `Started`."""

    lane: str
    request_id: str
    prompt: Prompt
    params: SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSampling:
    """Knobs for the reply that runs in the lane; in force from its next token."""

    lane: str
    params: SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDraft:
    """Who proposes how the lane's replies may go on, from the next token on: the checkpoint in the
    lane `by`, the text so far (`lookup`), or nobody. It changes how fast they come, not what they
    say. Answered by `DraftSet`.
    """

    lane: str
    by: str = ""
    lookup: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CountTokens:
    """How many tokens a prompt would take; answered by `Counted`. A newer one of the
    same lane and id replaces an older.
    """

    lane: str
    request_id: str
    prompt: Prompt
    behind: int = 0  # tokens that stand before it in the context
    reply_tokens: int = 0  # that may follow: memory is forecast for all three


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowPrompt:
    """What the model would get of a prompt; answered by `PromptShown`."""

    lane: str
    request_id: str
    prompt: Prompt
    reply_tokens: int = 256  # for which room is left


@dataclass(frozen=True, slots=True, kw_only=True)
class Unload:
    lane: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    pass


Question = CountTokens | ShowPrompt
Request = (
    Load | CancelLoad | Generate | SetSampling | SetDraft | Stop | Question | Unload | Shutdown
)

# ---- events


@dataclass(frozen=True, slots=True)
class Step:
    """One token of a reply. `text` is what it adds to the shown text (may be "" while a
    character is incomplete).
    """

    id: int
    text: str
    logprob: float  # natural log of the model's own probability, before any knob
    entropy: float | None = None  # bits, after the knobs; None where it was not asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    lane: str
    stage: str  # "reading", "starting torch", "loading weights", "tokenizer", "warming up"
    done: float = 0.0  # 0..1


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    lane: str
    info: CheckpointInfo
    device: str
    dtype: str
    context_length: int
    vocab_size: int  # ids that are offered
    weight_bytes: int
    cache_bytes_per_token: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed:
    lane: str
    path: str
    error: TuiChatError
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unloaded:
    lane: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSet:
    """Who drafts for a lane by now. `kind` "" is nobody, and `error` says why, if that was not the
    wish.
    """

    lane: str
    kind: Literal["", "lookup", "draft"] = ""
    label: str = ""  # of the checkpoint
    error: TuiChatError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A reply begins. `first_turn` is the index in `Prompt.turns` of the oldest turn sent after
    the system prompt (0 or 1 when nothing was dropped); `first_char` the same for a raw text.
    `dropped_tokens` counts what was left out.
    """

    request_id: str
    lane: str
    seed: int
    prompt_ids: tuple[int, ...]
    reused_tokens: int
    first_turn: int = 0
    first_char: int = 0
    dropped_tokens: int = 0
    missing: str = ""  # characters the tokenizer has no id for
    note: str = ""  # what the template says of how it took the turns


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillProgress:
    request_id: str
    done: int  # tokens
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowMoved:
    """The context filled up while the reply ran; fields as in `Started`, `first_char` counting on
    into the reply.
    """

    request_id: str
    first_turn: int
    first_char: int
    dropped_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """New tokens of a reply; `text` is the text they add, whole characters only. The counts are
    those of `Stats`, so far.
    """

    request_id: str
    text: str
    steps: tuple[Step, ...]
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    prompt_tokens: int = 0
    reused_tokens: int = 0
    prefill_seconds: float = 0.0
    new_tokens: int = 0
    decode_seconds: float = 0.0
    drafted_tokens: int = 0  # proposed, see SetDraft
    accepted_tokens: int = 0  # of those, the ones that were drawn

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0

    @property
    def acceptance(self) -> float | None:
        """The share of proposed tokens that were drawn; None where none was proposed."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """`text` is the whole reply as it is to be kept (a stop string is cut off)."""

    request_id: str
    lane: str
    reason: StopReason
    text: str
    ids: tuple[int, ...]
    stats: Stats
    detail: str = ""  # which stop string or token ended it


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A reply that could not go on; what was made so far has been emitted. `request_id` ""
    concerns the lane.
    """

    lane: str
    request_id: str
    error: TuiChatError


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on the device of a lane, and what a context of `tokens` there would add to them."""

    weights: int  # of all checkpoints that are open, those kept for later too
    caches: int  # keys and values of all of them
    idle: int  # of both, what is given up when something else needs it
    free: int  # what the machine or the GPU has left
    needs: int
    tokens: int

    @property
    def fits(self) -> bool:
        return self.needs <= self.free + self.idle

    @property
    def tight(self) -> bool:
        """Whether little is left beside it: a tenth of what is in use and free, or half a GB."""
        left = self.free + self.idle - self.needs
        return left < min((self.weights + self.caches + self.free) // 10, 5 * 10**8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    request_id: str
    lane: str
    tokens: int
    missing: str = ""
    memory: Memory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptShown:
    """The ids of a prompt as text: pieces, and of each whether it is a control token. `why` says
    why there are none.
    """

    request_id: str
    lane: str
    tokens: int = 0
    dropped_tokens: int = 0  # left out before them
    pieces: tuple[tuple[str, bool], ...] = ()
    note: str = ""  # what the template says of how it took the turns
    why: str = ""


Event = (
    LoadProgress
    | Loaded
    | LoadFailed
    | Unloaded
    | DraftSet
    | Started
    | PrefillProgress
    | WindowMoved
    | Stepped
    | Finished
    | Failed
    | Counted
    | PromptShown
)
