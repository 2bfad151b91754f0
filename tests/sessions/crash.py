"""Kill a process that streams replies into the store, again and again, and count what was lost.

    python tests/sessions/crash.py [--count 200] [--writers 2]

Each round starts processes that chat as the app does, tell through a pipe what the store has
acknowledged, and die by SIGKILL at a random moment. Prints the figures as JSON; exits 1 when an
acknowledged message is missing, wrong, or the file is damaged.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from pathlib import Path

from tui_chat.conversation import Conversation, Message, Receipt
from tui_chat.sessions.records import ChatMeta
from tui_chat.sessions.store import Store
from tui_chat.sessions.writer import SessionWriter

INTERVAL = 0.02  # seconds between two writes of a running reply: the app's half second, hurried


def chat_until_killed(path: Path, acknowledged: int) -> None:
    """Question, streamed reply, question, ... A line of the pipe is one acknowledged message."""

    def tell(message_id: str, text: str, finished: bool) -> None:
        line = json.dumps([message_id, text[:8], len(text), finished]) + "\n"
        os.write(acknowledged, line.encode())

    def fail(error: object) -> None:
        os.write(acknowledged, json.dumps(["error", str(error), 0, True]).encode() + b"\n")

    writer = SessionWriter(path, fail, interval=INTERVAL)
    chat = Conversation()
    writer.save_conversation(ChatMeta.of(chat)).result()
    number = 0
    while True:
        number += 1
        user = chat.add("user", f"{number:08d} " + "question " * random.randint(1, 30))
        writer.add_message(chat.id, user).result()
        tell(user.id, user.text, True)
        reply = chat.add("assistant", "", receipt=Receipt(seed=number))
        writer.add_message(chat.id, reply, finished=False)
        text = f"{number:08d} "
        for token in range(random.randint(1, 60)):
            text += f"token{token} "
            saved = writer.update_reply(reply.id, text, None, finished=False)
            saved.add_done_callback(lambda _, t=text: tell(reply.id, t, False))  # noqa: B023
            time.sleep(0.0005)
        writer.update_reply(reply.id, text, Receipt(stop_reason="stop"), finished=True).result()
        tell(reply.id, text, True)


def killed(path: Path, writers: int) -> list[tuple[str, str, int, bool]]:
    """Start `writers` processes, kill them at a random moment, return what they were promised."""
    children: list[tuple[int, int]] = []
    for _ in range(writers):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            random.seed(os.getpid())
            try:
                chat_until_killed(path, writing)
            finally:
                os._exit(1)
        os.close(writing)
        children.append((pid, reading))
    select.select([reading for _, reading in children], [], [], 10)
    time.sleep(random.uniform(0.0, 0.15))
    promised: list[tuple[str, str, int, bool]] = []
    for pid, _ in children:
        os.kill(pid, signal.SIGKILL)
    for pid, reading in children:
        os.waitpid(pid, 0)
        with os.fdopen(reading, "rb") as pipe:
            lines = pipe.read().split(b"\n")
        promised += [tuple(json.loads(line)) for line in lines[:-1]]
    return promised


def run(count: int, writers: int, directory: Path) -> dict[str, object]:
    promised = lost = shortened = corrupt = unfinished = 0
    slowest = 0.0
    for number in range(count):
        path = directory / f"{number}" / "chats.sqlite3"
        path.parent.mkdir()
        promises = killed(path, writers)
        promised += len(promises)
        began = time.perf_counter()
        with Store(path) as store:
            slowest = max(slowest, time.perf_counter() - began)
            corrupt += bool(store.notice or store.check())
            found: dict[str, Message] = {}
            for row in store.list():
                for message in store.load(row.id):
                    found[message.id] = message
                    if message.receipt is not None and message.receipt.stop_reason is None:
                        unfinished += 1
        for message_id, start, length, finished in promises:
            message = found.get(message_id)
            if message is None or not message.text.startswith(start):
                lost += 1
            elif len(message.text) < length:
                shortened += 1
            elif finished and message.role == "assistant" and message.receipt is None:
                lost += 1
    return {
        "kills": count * writers,
        "acknowledged": promised,
        "lost": lost,
        "shortened": shortened,
        "corrupt": corrupt,
        "interrupted_replies_kept": unfinished,
        "slowest_reopen_ms": round(slowest * 1000, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=200, help="rounds (default 200)")
    parser.add_argument("--writers", type=int, default=1, help="processes at once (default 1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = run(options.count, options.writers, Path(directory))
    print(json.dumps(figures))
    bad = figures["lost"] or figures["shortened"] or figures["corrupt"]
    return 1 if bad or not figures["acknowledged"] else 0


if __name__ == "__main__":
    sys.exit(main())
