"""The demo's training code and its files: tokenizer, split, format, a short conversation."""

import json
import random
import re
import sys
from pathlib import Path

import pytest
import tiktoken

HERE = Path(__file__).resolve().parents[2] / "checkpoints"
sys.path.insert(0, str(HERE))

import dialogues  # noqa: E402
import evaluate_demo  # noqa: E402
import train_demo  # noqa: E402

FILES = sorted(HERE.glob("demo-*/step_*.safetensors"))
RUNS = sorted({path.parent for path in FILES})
ODD_TEXT = [
    "",
    " ",
    "a  1",
    "  12\n\n 3",
    "I'm Anna.\tYou're?",
    "½ é 日本語 🙂",
    "13+29=42",
    "x\r\n  y  ",
]


def talk(n: int = 40) -> list[list[dialogues.Message]]:
    return [dialogues.conversation(random.Random(seed), 600) for seed in range(n)]


def tiktoken_of(path: Path) -> tiktoken.Encoding:
    """The same vocabulary in an independent implementation: ids are ranks."""
    tokenizer = train_demo.Tokenizer.load(path)
    plain = list(tokenizer.vocab)[: -len(train_demo.SPECIALS)]
    ranks = {
        bytes(tokenizer.bytes_of[letter] for letter in word): tokenizer.vocab[word]
        for word in plain
    }
    words = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+"
    spaces = r"\s+(?=\p{N})|\s+(?!\S)|\s+"
    return tiktoken.Encoding(
        "demo", pat_str=f"{words}|{spaces}", mergeable_ranks=ranks, special_tokens={}
    )


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_training_tokenizer_and_tiktoken_give_the_same_ids(run):
    tokenizer = train_demo.Tokenizer.load(run / "tokenizer.json")
    other = tiktoken_of(run / "tokenizer.json")
    texts = ODD_TEXT + [message["content"] for messages in talk() for message in messages]
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == other.encode_ordinary(text), text
        assert tokenizer.decode(ids) == text


def test_a_tokenizer_survives_saving(tmp_path):
    text = " ".join(message["content"] for messages in talk(10) for message in messages)
    tokenizer = train_demo.Tokenizer.train(text, 300)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert train_demo.Tokenizer.load(tmp_path / "tokenizer.json").vocab == tokenizer.vocab
    assert list(tokenizer.vocab)[-5:] == train_demo.SPECIALS
    digits = [word for word in tokenizer.vocab if re.search(r"\d", word)]
    assert sorted(digits) == list("0123456789")  # single digits only


def test_the_same_seed_makes_the_same_dialogues():
    assert talk(5) == talk(5)
    assert dialogues.held_out_prompts("memory", 5) == dialogues.held_out_prompts("memory", 5)
    assert talk(1) != [dialogues.conversation(random.Random(99), 600)]


def test_training_never_shows_what_is_held_out():
    replies = [m["content"] for c in talk(400) for m in c if m["role"] == "assistant"]
    sums = [re.search(r"(\d+) \+ (\d+) =", reply) for reply in replies]
    differences = [re.search(r"(\d+) - (\d+) =", reply) for reply in replies]
    names = [re.match(r"Nice to meet you, (\w+)\.$", reply) for reply in replies]
    seen_sums = {tuple(sorted(map(int, found.groups()))) for found in sums if found}
    seen_differences = {found.groups() for found in differences if found}
    seen_names = {found[1] for found in names if found}
    assert min(len(seen_sums), len(seen_differences), len(seen_names)) > 100
    assert not any(dialogues.held_out(f"{a}+{b}") for a, b in seen_sums)
    assert not any(dialogues.held_out(f"{a}-{b}") for a, b in seen_differences)
    assert not any(dialogues.held_out(name) for name in seen_names)


@pytest.mark.parametrize("kind", ["add", "memory", "greet", "help", "identity"])
def test_what_is_measured_is_held_out(kind):
    for prompt in dialogues.held_out_prompts(kind, 50):
        asked, reply = prompt[-2]["content"], prompt[-1]["content"]
        if kind == "add":
            a, b = sorted(map(int, re.findall(r"\d+", reply)[:2]))
            asked = f"{a}+{b}"
        elif kind == "memory":
            asked = reply.removeprefix("Your name is ").removesuffix(".")
        assert dialogues.held_out(asked)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_file_is_small_and_says_what_it_is(path):
    assert path.stat().st_size <= 3_000_000
    tensors, metadata = train_demo.read_safetensors(path)
    spec = json.loads(metadata["spec"])
    assert (metadata["format"], metadata["run"]) == ("tui-chat", path.parent.name)
    assert int(metadata["step"]) == int(path.stem.removeprefix("step_"))
    assert tensors["embed.weight"].shape == (spec["vocab_size"], spec["n_embd"])
    assert ("template" in metadata) == (metadata["mode"] == "chat")
    assert set(json.loads(metadata["losses"])) == {"train", "val"}


def test_the_chat_model_adds_and_remembers_a_name():
    path = max((HERE / "demo-chat").glob("step_*.safetensors"))
    respond = evaluate_demo.own_responder(path)
    messages: list[dialogues.Message] = []
    for asked, wanted in [
        ("What is 13 + 29?", "42"),
        ("My name is Anna.", "Anna"),
        ("What is my name?", "Anna"),
    ]:
        messages.append({"role": "user", "content": asked})
        reply = respond([messages])[0]
        messages.append({"role": "assistant", "content": reply})
        assert wanted in reply
