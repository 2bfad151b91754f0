"""Measures a demo checkpoint: greedy replies to held-out prompts, exact match.

    python checkpoints/evaluate_demo.py [PATH] [-n 120] [--text TEXT]

With --own the files are run by the training script's model, many prompts at a time; without it by
the app. With --text the bits a byte of the base checkpoints are measured too.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from dialogues import KINDS, Message, held_out_prompts
from train_demo import PREFIX, load_checkpoint, text_loss

Responder = Callable[[list[list[Message]]], list[str]]
HERE = Path(__file__).parent


def app_responder(path: Path) -> Responder:
    import tui_chat

    checkpoint = tui_chat.open(str(path))

    def reply(messages: list[Message]) -> str:
        steps = checkpoint.generate(
            checkpoint.prompt_ids(messages), temperature=0.0, max_new_tokens=120
        )
        return "".join(step.text for step in steps)

    return lambda prompts: [reply(messages) for messages in prompts]


def own_responder(path: Path) -> Responder:
    model, tokenizer = load_checkpoint(path)
    end = tokenizer.vocab["<|end|>"]

    @torch.no_grad()
    def respond(prompts: list[list[Message]]) -> list[str]:
        """Prompts are filled up on the right, where a causal model does not look."""
        rows = [[*tokenizer.turns(p)[0], tokenizer.vocab[PREFIX["assistant"]]] for p in prompts]
        starts = [len(row) for row in rows]
        open_rows = set(range(len(rows)))
        for _ in range(120):
            batch = sorted(open_rows)
            longest = max(len(rows[i]) for i in batch)
            if longest > model.spec.context_length:
                break
            ids = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in batch])
            hidden = model(ids)[range(len(batch)), [len(rows[i]) - 1 for i in batch]]
            for i, token in zip(batch, model.logits(hidden).argmax(-1).tolist(), strict=True):
                rows[i].append(token)
                if token == end:
                    open_rows.discard(i)
            if not open_rows:
                break
        return [tokenizer.decode(row[start:]) for row, start in zip(rows, starts, strict=True)]

    return respond


def accuracy(respond: Responder, kind: str, n: int, show: int = 0) -> float:
    prompts = held_out_prompts(kind, n)
    replies: list[str] = []
    for low in range(0, n, 40):
        replies += respond([p[:-1] for p in prompts[low : low + 40]])
    wrong = [(p, r) for p, r in zip(prompts, replies, strict=True) if r != p[-1]["content"]]
    for prompt, reply in wrong[:show]:
        print(f"    {prompt[-2]['content']!r}: {reply!r}, not {prompt[-1]['content']!r}")
    return 1 - len(wrong) / n


def bits_per_byte(path: Path, text: str) -> float:
    """On the last tenth of the text, which the base run never saw."""
    model, tokenizer = load_checkpoint(path)
    kept = text[len(text) * 9 // 10 :]
    ids = torch.tensor([tokenizer.vocab["<|endoftext|>"], *tokenizer.encode(kept)])
    with torch.no_grad():
        nats = text_loss(model, ids) * (len(ids) - 1)
    return nats / math.log(2) / len(kept.encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "path", type=Path, nargs="?", help="a chat checkpoint; without it the newest of demo-chat"
    )
    parser.add_argument("-n", type=int, default=120, help="prompts of each kind")
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument(
        "--show", type=int, default=0, help="print so many wrong replies of each kind"
    )
    parser.add_argument(
        "--own", action="store_true", help="run the training script's model instead of the app"
    )
    parser.add_argument(
        "--text", type=Path, help=("the text of the base run: bits a byte of every base checkpoint")
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.path or max((HERE / "demo-chat").glob("step_*.safetensors"))
    respond = own_responder(path) if args.own else app_responder(path)
    results = {}
    for kind in args.kinds:
        results[kind] = accuracy(respond, kind, args.n, args.show)
        print(f"{kind:22} {results[kind]:.3f}", flush=True)
    print(
        f"{'mean':22} {sum(results.values()) / len(results):.3f}  {path.name}, {args.n} "
        "prompts of each kind"
    )
    if args.text:
        for base in sorted((path.parent.parent / "demo-base").glob("step_*.safetensors")):
            print(
                f"{base.name:26} {bits_per_byte(base, args.text.read_text(encoding='utf-8')):.3f} "
                "bits a byte"
            )


if __name__ == "__main__":
    main()
