"""Trains the demo checkpoints: a tokenizer, a base run on a text, a chat run on dialogues.

    python checkpoints/train_demo.py TEXT [--out DIR] [--seed N]

Needs torch and regex only. It shares no code with the app: its files test the app's reader.
The same seed on the same machine with the same number of threads gives the same files.
"""

import argparse
import datetime
import json
import math
import random
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import regex
import torch
import torch.nn as nn
import torch.nn.functional as F
from dialogues import Message, conversation

SPECIALS = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
PREFIX = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
GPT2_SPLIT = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
DIGITS_APART = regex.compile(r"\p{N}|[^\p{N}]+")


# ---------------------------------------------------------------- tokenizer


def byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in shown}
    letters |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in letters)}
    return letters


def split(text: str) -> Iterator[str]:
    """The pieces inside which tokens are merged: digits apart, then words (llama.cpp: "smollm")."""
    for run in DIGITS_APART.findall(text):
        yield from GPT2_SPLIT.findall(run)


class Tokenizer:
    """Byte-level BPE: ids are 256 bytes, then the merges in order, then the specials."""

    def __init__(self, merges: list[tuple[str, str]]):
        self.letters = byte_letters()
        self.merges = merges
        words = list(self.letters[b] for b in range(256)) + [a + b for a, b in merges] + SPECIALS
        self.vocab = {word: i for i, word in enumerate(words)}
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self.words = words
        self.cache: dict[str, list[int]] = {}
        self.bytes_of = {letter: b for b, letter in self.letters.items()}

    @staticmethod
    def train(text: str, vocab_size: int) -> "Tokenizer":
        letters = byte_letters()
        counts = Counter(split(text))
        words = [[letters[b] for b in piece.encode()] for piece in counts]
        weights = list(counts.values())
        pairs: Counter[tuple[str, str]] = Counter()
        where: dict[tuple[str, str], set[int]] = defaultdict(set)
        for w, word in enumerate(words):
            for pair in pairwise(word):
                pairs[pair] += weights[w]
                where[pair].add(w)
        merges: list[tuple[str, str]] = []
        made = set(letters.values())
        while len(merges) < vocab_size - 256 - len(SPECIALS):
            best = max(pairs, key=lambda pair: (pairs[pair], pair))
            if best[0] + best[1] not in made:  # each token is made in one way only
                made.add(best[0] + best[1])
                merges.append(best)
            for w in where.pop(best):
                word = words[w]
                for pair in pairwise(word):
                    pairs[pair] -= weights[w]
                words[w] = word = _merged(word, best)
                for pair in pairwise(word):
                    pairs[pair] += weights[w]
                    where[pair].add(w)
            del pairs[best]
        return Tokenizer(merges)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in split(text):
            if piece not in self.cache:
                word = [self.letters[b] for b in piece.encode()]
                while len(word) > 1:
                    pair = min(pairwise(word), key=lambda p: self.rank.get(p, math.inf))
                    if pair not in self.rank:
                        break
                    word = _merged(word, pair)
                self.cache[piece] = [self.vocab[t] for t in word]
            ids += self.cache[piece]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Specials are left out."""
        letters = "".join(self.words[i] for i in ids if i < len(self.words) - len(SPECIALS))
        return bytes(self.bytes_of[letter] for letter in letters).decode(errors="replace")

    def turns(self, messages: list[Message]) -> tuple[list[int], list[bool]]:
        """The ids of a conversation, and for each whether the assistant wrote it."""
        ids: list[int] = []
        written: list[bool] = []
        for m in messages:
            text = [*self.encode(m["content"]), self.vocab["<|end|>"]]
            ids += [self.vocab[PREFIX[m["role"]]], *text]
            written += [False] + [m["role"] == "assistant"] * len(text)
        return ids, written

    def save(self, path: Path) -> None:
        first = len(self.vocab) - len(SPECIALS)
        added = [
            {
                "id": first + i,
                "content": s,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, s in enumerate(SPECIALS)
        ]
        digits = {"type": "Digits", "individual_digits": True}
        level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        }
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, level]},
            "post_processor": None,
            "decoder": level,
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None,
                "continuing_subword_prefix": None, "end_of_word_suffix": None,
                "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                "vocab": self.vocab, "merges": [f"{a} {b}" for a, b in self.merges],
            },
        }  # fmt: skip
        path.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> "Tokenizer":
        merges = json.loads(path.read_text(encoding="utf-8"))["model"]["merges"]
        return Tokenizer([tuple(m.split(" ")) for m in merges])


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    i = 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


# ---------------------------------------------------------------- model


@dataclass(frozen=True)
class Spec:
    vocab_size: int = 640
    n_layer: int = 5
    n_head: int = 4
    n_kv_head: int = 4
    head_dim: int = 32
    n_embd: int = 128
    context_length: int = 384
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    position: str = "rope"
    rope_theta: float = 10000.0
    rope_layout: str = "half"
    activation: str = "silu"
    gated: bool = True
    qk_norm: str = "none"


class Attention(nn.Module):
    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        self.qkv = nn.Linear(spec.n_embd, 3 * spec.n_embd, bias=False)
        self.out = nn.Linear(spec.n_embd, spec.n_embd, bias=False)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        B, T, C = x.shape
        H, D = self.spec.n_head, self.spec.head_dim
        q, k, v = (
            self.qkv(x).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
        )  # (B, H, T, D) each
        q, k = rotate(q, cos, sin).view(B * H, T, D), rotate(k, cos, sin).view(B * H, T, D)
        # Written out: for heads this small, four times as fast on a CPU as the fused one.
        scores = torch.baddbmm(mask.expand(B * H, T, T), q, k.transpose(1, 2), alpha=D**-0.5)
        y = scores.softmax(-1) @ v.reshape(B * H, T, D)
        return self.out(y.view(B, H, T, D).transpose(1, 2).reshape(B, T, C))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class MLP(nn.Module):
    def __init__(self, spec: Spec):
        super().__init__()
        self.gate_up = nn.Linear(spec.n_embd, 6 * spec.n_embd, bias=False)
        self.down = nn.Linear(3 * spec.n_embd, spec.n_embd, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, spec: Spec):
        super().__init__()
        self.attn_norm = nn.RMSNorm(spec.n_embd, spec.norm_eps)
        self.attn = Attention(spec)
        self.mlp_norm = nn.RMSNorm(spec.n_embd, spec.norm_eps)
        self.mlp = MLP(spec)

    def forward(self, x: torch.Tensor, *tables: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.attn_norm(x), *tables)
        return x + self.mlp(self.mlp_norm(x))


class Model(nn.Module):
    """Llama's arrangement, the head tied to the embedding. Returns the last hidden states."""

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.n_embd)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.n_layer))
        self.final_norm = nn.RMSNorm(spec.n_embd, spec.norm_eps)
        frequencies = spec.rope_theta ** (-torch.arange(0, spec.head_dim, 2) / spec.head_dim)
        angles = torch.outer(torch.arange(spec.context_length), frequencies)  # (T, D/2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer(
            "mask", torch.full((spec.context_length,) * 2, -1e9).triu(1), persistent=False
        )
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02 if "embed" in name else p.shape[1] ** -0.5)
                if name.endswith(("attn.out.weight", "mlp.down.weight")):
                    nn.init.zeros_(p)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        T = ids.shape[1]
        x = self.embed(ids)
        kind = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
        cos, sin, mask = self.cos[:T].to(kind), self.sin[:T].to(kind), self.mask[:T, :T].to(kind)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return self.final_norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return (hidden @ self.embed.weight.T).float()


# ---------------------------------------------------------------- files


def write_safetensors(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    """bf16 tensors, one after another, after a header padded with spaces to eight bytes."""
    header: dict[str, object] = {"__metadata__": metadata}
    parts: list[bytes] = []
    at = 0
    for name, tensor in tensors.items():
        words = tensor.detach().to(torch.bfloat16).contiguous().view(torch.int16).flatten().tolist()
        data = struct.pack(f"<{len(words)}h", *words)
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [at, at + len(data)],
        }
        parts.append(data)
        at += len(data)
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    raw = bytearray(path.read_bytes())
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    metadata = header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        flat = torch.frombuffer(raw[8 + size + low : 8 + size + high], dtype=torch.bfloat16)
        tensors[name] = flat.view(entry["shape"]).float()
    return tensors, metadata


TEMPLATE = {
    "name": "demo",
    "system": ["<|system|>", "<|end|>"],
    "user": ["<|user|>", "<|end|>"],
    "assistant": ["<|assistant|>", "<|end|>"],
    "stop": ["<|end|>"],
}
DESCRIPTIONS = {
    "demo-base": (
        "A very small model of Shakespeare's plays (tinyshakespeare, public domain): it has "
        "the look of the text, not its sense."
    ),
    "demo-chat": (
        "The demo base model trained further on made-up dialogues: greetings, small sums, "
        "names, the keys of the app. It knows almost nothing else."
    ),
}


def save_checkpoint(
    out: Path, run: str, model: Model, step: int, tokens: int, losses: dict[str, float]
) -> Path:
    metadata = {
        "format": "tui-chat",
        "format_version": "1",
        "spec": json.dumps(asdict(model.spec)),
        "run": run,
        "step": str(step),
        "losses": json.dumps({k: round(v, 4) for k, v in losses.items()}),
        "tokens_seen": str(tokens),
        "created": datetime.date.today().isoformat(),
        "description": DESCRIPTIONS[run],
        "license": "MIT",
        "tokenizer": "tokenizer.json",
        "mode": "chat" if run == "demo-chat" else "raw",
    }
    if run == "demo-chat":
        metadata["template"] = json.dumps(TEMPLATE)
    path = out / run / f"step_{step:06d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, dict(model.named_parameters()), metadata)
    return path


def load_checkpoint(path: Path) -> tuple[Model, Tokenizer]:
    tensors, metadata = read_safetensors(path)
    model = Model(Spec(**json.loads(metadata["spec"])))
    model.load_state_dict(tensors)
    return model.eval(), Tokenizer.load(path.parent / metadata["tokenizer"])


# ---------------------------------------------------------------- training


class Training:
    """One run: Muon for the matrices, AdamW for the rest.

    The learning rate is constant, then falls to nothing; a second, lower fall may follow.
    """

    def __init__(
        self,
        model: Model,
        first: int,
        constant: float,
        compiled: bool,
        second: int = 0,
        low: float = 0.0,
    ):
        self.model, self.first, self.constant = model, first, constant
        self.second, self.low = second, low
        self.steps = first + second
        matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
        rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.1),
            torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = [group["lr"] for o in self.optimizers for group in o.param_groups]
        self.forward = torch.compile(model, dynamic=False) if compiled else model
        self.mean, self.tokens, self.since = math.nan, 0, time.time()

    def loss(self, ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Mean over the wanted targets; (B, T + 1) both."""
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.forward(ids[:, :-1])
            chosen = wanted[:, 1:]
            return F.cross_entropy(self.model.logits(hidden[chosen]), ids[:, 1:][chosen])

    def factor(self, i: int) -> float:
        """Of the learning rate at step `i`."""
        if i >= self.first:
            k = i - self.first
            return self.low * min((k + 1) / 20, 1 - k / self.second)
        done = i / self.first
        fall = 1.0 if done < self.constant else max(0.02, (1 - done) / (1 - self.constant))
        return min(1.0, (i + 1) / 20) * fall

    def step(self, i: int, ids: torch.Tensor, wanted: torch.Tensor) -> None:
        factor = self.factor(i)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        loss = self.loss(ids, wanted)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        now = loss.item()
        self.mean = now if math.isnan(self.mean) else 0.95 * self.mean + 0.05 * now
        self.tokens += ids[:, 1:].numel()

    def report(self, run: str, step: int) -> None:
        if step % 50 == 0 or step == self.steps:
            seconds = time.time() - self.since
            print(
                f"{run} step {step}/{self.steps} loss {self.mean:.4f} {seconds:.0f} s", flush=True
            )

    def state_dict(self) -> dict[str, object]:
        optimizers = [o.state_dict() for o in self.optimizers]
        numbers = {"mean": self.mean, "tokens": self.tokens}
        return {"model": self.model.state_dict(), "optimizers": optimizers, "numbers": numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.mean, self.tokens = state["numbers"]["mean"], state["numbers"]["tokens"]


@torch.no_grad()
def text_loss(model: Model, ids: torch.Tensor) -> float:
    """Nats per token over windows of the whole context, none of which overlap."""
    T = model.spec.context_length
    total, count = 0.0, 0
    for low in range(0, len(ids) - 1, T):
        piece = ids[low : low + T + 1]
        hidden = model(piece[None, :-1])
        total += F.cross_entropy(model.logits(hidden[0]), piece[1:], reduction="sum").item()
        count += len(piece) - 1
    return total / count


def train_base(
    args: argparse.Namespace, model: Model, train: torch.Tensor, val: torch.Tensor
) -> None:
    steps = args.base_tokens // args.batch
    training = Training(model, steps, 0.4, args.compile)
    generator = torch.Generator().manual_seed(args.seed)
    T = model.spec.context_length
    rows = args.batch // T
    saves = {max(1, round(steps * part)) for part in (0.04, 0.15, 0.45, 1.0)}
    for i in range(steps):
        starts = torch.randint(0, len(train) - T - 1, (rows,), generator=generator).tolist()
        ids = torch.stack([train[s : s + T + 1] for s in starts])
        training.step(i, ids, torch.ones_like(ids, dtype=torch.bool))
        if i + 1 in saves:
            losses = {"train": training.mean, "val": text_loss(model, val)}
            save_checkpoint(args.out, "demo-base", model, i + 1, training.tokens, losses)
        training.report("base", i + 1)


class Dialogues:
    """Rows of one conversation each, cut at the row's length: no filling, no neighbours."""

    def __init__(self, tokenizer: Tokenizer, seed: int, lines: list[str]):
        self.tokenizer, self.rng, self.lines = tokenizer, random.Random(seed), lines

    def rows(self, n: int, T: int, late: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        all_ids, all_written = [], []
        while len(all_ids) < n:
            ids, written = self.tokenizer.turns(conversation(self.rng, 3 * T, self.lines, late))
            if len(ids) > T:
                all_ids.append(ids[: T + 1])
                all_written.append(written[: T + 1])
        return torch.tensor(all_ids), torch.tensor(all_written)


def train_chat(
    args: argparse.Namespace, model: Model, tokenizer: Tokenizer, lines: list[str]
) -> None:
    first, second = args.chat_tokens // args.batch, args.more_tokens // args.batch
    training = Training(model, first, args.constant, args.compile, second, args.more_rate)
    steps = training.steps
    dialogues = Dialogues(tokenizer, args.seed + 1, lines)
    fresh = Dialogues(tokenizer, args.seed + 2, lines).rows(40, 384)
    state_path = args.out / "chat-state.pt"
    done = 0
    if args.resume:
        state = torch.load(state_path, weights_only=True)
        done = state["step"]
        training.load_state_dict(state["training"])
        version, internal, gauss = state["random"]
        dialogues.rng.setstate((version, tuple(internal), gauss))
    lengths = (96, 384)  # by turns: many openings, then long conversations
    for i in range(done, steps):
        T = lengths[i % 2]
        training.step(i, *dialogues.rows(args.batch // T, T, late=i >= first))
        early = i + 1 <= 1200 and (i + 1) % 100 == 0
        if early or (i + 1) % args.save_every == 0 or i + 1 in (first, steps):
            with torch.no_grad():
                losses = {"train": training.mean, "val": training.loss(*fresh).item()}
            save_checkpoint(args.out, "demo-chat", model, i + 1, training.tokens, losses)
            state = {"step": i + 1, "training": training.state_dict()}
            torch.save(state | {"random": dialogues.rng.getstate()}, state_path)
        training.report("chat", i + 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "text",
        type=Path,
        help="plain text for the base run; its last tenth is kept for measuring",
    )
    parser.add_argument("--out", type=Path, default=Path("demo-runs"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vocab-size", type=int, default=640)
    parser.add_argument("--batch", type=int, default=4096, help="tokens in a step")
    parser.add_argument("--base-tokens", type=int, default=2_400_000)
    parser.add_argument("--chat-tokens", type=int, default=24_000_000)
    parser.add_argument(
        "--constant",
        type=float,
        default=0.5,
        help="part of the chat run before the learning rate falls",
    )
    parser.add_argument("--more-tokens", type=int, default=10_000_000, help="for the second fall")
    parser.add_argument("--more-rate", type=float, default=0.3, help="learning rate of the second")
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile: a minute of waiting, then faster"
    )
    parser.add_argument(
        "--from-base",
        type=Path,
        help="a base checkpoint to start the chat run from; skips the base run",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with a stopped chat run (with --from-base)"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    text = args.text.read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    if args.from_base:
        model, tokenizer = load_checkpoint(args.from_base)
        model.train()
    else:
        rng = random.Random(args.seed)
        talk = "\n".join(m["content"] for _ in range(1500) for m in conversation(rng, 500))
        tokenizer = Tokenizer.train(text[:cut] + talk, args.vocab_size)
        model = Model(Spec(vocab_size=args.vocab_size))
    for run in ("demo-base", "demo-chat"):
        (args.out / run).mkdir(exist_ok=True)
        tokenizer.save(args.out / run / "tokenizer.json")
    print(f"{sum(p.numel() for p in model.parameters()):,} weights", flush=True)
    if not args.from_base:
        end = [tokenizer.vocab["<|endoftext|>"]]
        train = torch.tensor(end + tokenizer.encode(text[:cut]))
        val = torch.tensor(end + tokenizer.encode(text[cut:]))
        print(
            (f"{cut / len(train):.2f} characters a token; {len(train):,} tokens to train on"),
            flush=True,
        )
        train_base(args, model, train, val)
        nats = text_loss(model, val) * (len(val) - 1) / len(text[cut:].encode())
        print(f"base val {nats / math.log(2):.3f} bits a byte", flush=True)
    if args.chat_tokens:
        lines = [line for line in text[:cut].split("\n") if 8 < len(line) < 60]
        train_chat(args, model, tokenizer, lines)


if __name__ == "__main__":
    main()
