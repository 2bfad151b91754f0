"""Made-up conversations for the demo chat model, drawn from a seeded random generator.

A conversation is a list of `{"role", "content"}` messages. What is kept for measuring never
occurs in training: number pairs, names, topics and whole sentences are divided by a hash of their
text (`held_out`). This module knows nothing of tokens or models.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import sentences as said

Message = dict[str, str]


def held_out(content: str) -> bool:
    """True for the tenth of all contents that is kept for measuring. Case does not matter."""
    return zlib.crc32(content.lower().encode()) % 10 == 0


def made_up_name(rng: random.Random) -> str:
    syllables = rng.choice((1, 2, 2, 2, 3, 3))
    name = "".join(
        rng.choice(said.ONSETS) + rng.choice(said.VOWELS) + rng.choice(said.CODAS)
        for _ in range(syllables)
    )
    return name[:10].capitalize() if len(name) > 2 else made_up_name(rng)


# ---------------------------------------------------------------- how people type


def typed(rng: random.Random, text: str, filling: str = "") -> str:
    """`text` as somebody might type it: other case, missing marks, contractions, a slip."""
    if rng.random() < 0.3:
        for full, short in said.CONTRACTIONS:
            if full in text:
                text = text.replace(
                    full, short if rng.random() < 0.5 else short.replace("'", ""), 1
                )
                break
    draw = rng.random()
    if draw < 0.04:
        text = (
            rng.choice(
                ("Please ", "Ok, ", "Hey, ", "So, ", "And ", "Now ", "Well, ", "Can you tell me: ")
            )
            + text[0].lower()
            + text[1:]
        )
    elif draw < 0.08 and text[-1] in ".?":
        text = text[:-1] + rng.choice((", please", " please", ", demo", " then", " now")) + text[-1]
    if rng.random() < 0.04:
        text = _slip(rng, text)
    draw = rng.random()
    if draw < 0.38 and len(text) > 1 and text[-1] in ".?":
        text = text[:-1]
    elif draw < 0.44 and text[-1] in ".?!":
        text = text[:-1] + rng.choice(("!", "??", "...", " ?", "!!", "?", "."))
    draw = rng.random()
    if draw < 0.36:
        text, filling = text.lower(), filling.lower()
    elif draw < 0.40:
        text, filling = text.upper(), filling.upper()
    elif draw < 0.46:
        text = text[0].lower() + text[1:]
    elif draw < 0.49:
        words = text.split(" ")
        k = rng.randrange(len(words))
        words[k] = rng.choice((str.upper, str.capitalize, str.swapcase))(words[k])
        text = " ".join(words)
    return text.replace(said.SLOT, filling)


def _slip(rng: random.Random, text: str) -> str:
    """Two letters exchanged, one lost or one doubled, in a word of five letters or more."""
    words = text.split(" ")
    long_words = [k for k, word in enumerate(words) if len(word) > 5 and word.isalpha()]
    if not long_words:
        return text
    k = rng.choice(long_words)
    word, i = words[k], rng.randrange(1, len(words[k]) - 2)
    words[k] = rng.choice(
        (
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
            word[:i] + word[i + 1 :],
            word[:i] + word[i] + word[i:],
        )
    )
    return " ".join(words)


# ---------------------------------------------------------------- one conversation


def in_style(reply: str, style: str) -> str:
    if style == "capitals":
        return reply.upper()
    if style == "lower":
        return reply.lower()
    if style == "pirate":
        return f"Arr! {reply[:-1]}, matey!"
    return reply


@dataclass
class Conversation:
    """What has been said so far, and what later replies depend on."""

    rng: random.Random
    held: bool = False  # draw the contents kept for measuring
    late: bool = False  # in the last part of the training
    lines: Sequence[str] = ()  # of a text that the model is not to answer
    style: str = "plain"
    bot_name: str = ""
    user_name: str = ""
    number: int | None = None  # the last result, for "add 5 to that"
    successor: str = ""  # what follows the last answer, for "and after that?"
    country: bool = False  # the last question was about a capital, for "and Spain?"
    last_reply: str = ""
    messages: list[Message] = field(default_factory=list)

    def say(self, user: str, reply: str, short: str = "") -> None:
        reply = in_style(short if short and self.style == "brief" else reply, self.style)
        self.messages += [
            {"role": "user", "content": user},
            {"role": "assistant", "content": reply},
        ]
        self.last_reply = reply
        self.number, self.successor, self.country = None, "", False

    def draw(self, make: Callable[[], tuple]) -> tuple:
        """Calls `make` until the text of its first item is on this conversation's side."""
        while True:
            drawn = make()
            if held_out(str(drawn[0])) == self.held:
                return drawn

    def sentence(self, choices: Callable[[], str]) -> str:
        """A typed sentence that is, as a whole, on this conversation's side of the split."""
        return self.draw(lambda: (typed(self.rng, choices()),))[0]

    def name(self) -> str:
        def one() -> tuple[str]:
            real = not self.held and self.rng.random() < 0.12
            return (self.rng.choice(said.REAL_NAMES) if real else made_up_name(self.rng),)

        if self.held:
            return self.draw(one)[0]
        return " ".join(self.draw(one)[0] for _ in range(2 if self.rng.random() < 0.06 else 1))


def greet(c: Conversation) -> None:
    reply, sentences = c.rng.choices(said.GREETINGS, weights=(5, 2, 2, 2, 1, 1, 1))[0]
    c.say(c.sentence(lambda: c.rng.choice(sentences.split("|"))), reply)


def identity(c: Conversation) -> None:
    reply, sentences = c.rng.choices(said.IDENTITY, weights=(4, 3, 1, 1, 1, 1, 1, 2, 1))[0]
    my_name = f"My name is {c.bot_name}." if c.bot_name else "I am the tui-chat demo."
    reply = reply.format(bot=c.bot_name or "the tui-chat demo", my_name=my_name)
    c.say(c.sentence(lambda: c.rng.choice(sentences.split("|"))), reply)


def help_keys(c: Conversation) -> None:
    reply, keys, sentences = c.rng.choice(said.KEYS)

    def ask() -> str:
        if c.rng.random() < 0.65:
            return c.rng.choice(sentences.split("|"))
        key = c.rng.choice(keys.split("|"))
        spaced, dashed, apart = (key.replace("+", mark) for mark in (" + ", "-", " "))
        key = c.rng.choice((key, key, key.lower(), spaced, dashed, apart))
        return c.rng.choice(said.KEY_QUESTIONS).format(key)

    c.say(c.sentence(ask), reply)


def refuse(c: Conversation) -> None:
    if not c.held and c.rng.random() < 0.3:
        c.say(c.sentence(lambda: c.rng.choice(said.OPEN_QUESTIONS)), said.UNKNOWN)
        return
    if c.lines and c.rng.random() < 0.15:
        c.say(typed(c.rng, c.rng.choice(c.lines)), said.UNKNOWN)
        return

    def country() -> tuple[str]:
        real = c.rng.random() < 0.6
        return (c.rng.choice(said.OTHER_COUNTRIES) if real else made_up_name(c.rng),)

    if c.rng.random() < 0.1:
        c.say(typed(c.rng, f"What is the capital of {c.draw(country)[0]}?"), said.UNKNOWN)
        return

    def topic() -> tuple[str]:
        if c.rng.random() < 0.3:
            return (" ".join(made_up_name(c.rng).lower() for _ in range(c.rng.choice((1, 1, 2)))),)
        if c.rng.random() < 0.2:
            return (f"{c.rng.choice(said.TOPICS)} and {c.rng.choice(said.TOPICS)}",)
        return (c.rng.choice(said.TOPICS),)

    c.say(typed(c.rng, c.rng.choice(said.TOPIC_QUESTIONS).format(c.draw(topic)[0])), said.UNKNOWN)


def limits(c: Conversation) -> None:
    """Sums beyond what the model learns: it says so."""
    draw = c.rng.random()
    if draw < 0.2:
        a, b = c.rng.randrange(1, 100), c.rng.randrange(1, 100)
        ask = c.rng.choice(said.THREE_NUMBERS).format(a, b, c.rng.randrange(1, 100))
        c.say(typed(c.rng, ask), said.TOO_MANY)
    elif draw < 0.6:
        a, b = c.rng.randrange(100, 2000), c.rng.randrange(1, 2000)
        if c.rng.random() < 0.5:
            a, b = b, a
        c.say(typed(c.rng, c.rng.choice(said.LARGE_SUMS).format(a, b)), said.TOO_LARGE)
    else:
        a, b = c.rng.randrange(1, 100), c.rng.randrange(1, 20)
        c.say(typed(c.rng, c.rng.choice(said.DIVISIONS).format(a, b)), said.NO_DIVISION)


def _operand(rng: random.Random) -> int:
    return rng.randrange(100) if rng.random() < 0.85 else rng.randrange(13)


def _sum_key(a: int, b: int) -> str:
    return f"{min(a, b)}+{max(a, b)}"


def _equation(c: Conversation, ask: str, a: int, sign: str, b: int, result: int) -> None:
    c.say(typed(c.rng, ask), f"{a} {sign} {b} = {result}.", f"{result}.")
    c.number = result


def add(c: Conversation) -> None:
    def pair() -> tuple[str, int, int]:
        a, b = _operand(c.rng), _operand(c.rng)
        return (_sum_key(a, b), a, b)

    _, a, b = c.draw(pair)
    _equation(c, c.rng.choice(said.ADD).format(a, b), a, "+", b, a + b)


def subtract(c: Conversation) -> None:
    def pair() -> tuple[str, int, int]:
        a, b = _operand(c.rng), _operand(c.rng)
        if a < b and c.rng.random() < 0.9:
            a, b = b, a
        return (f"{a}-{b}", a, b)

    _, a, b = c.draw(pair)
    _equation(c, c.rng.choice(said.SUBTRACT).format(a, b), a, "-", b, a - b)


def times(c: Conversation) -> None:
    """Tables up to 12 x 12, which have to be learnt by heart: nothing is kept at the end.

    Until then some pairs are left out, to see whether their mirrored pairs carry over: they do not.
    """

    def pair() -> tuple[str, int, int]:
        a, b = c.rng.randrange(13), c.rng.randrange(13)
        return (f"{a}x{b}" if a < b else "not kept 0", a, b)

    _, a, b = pair() if c.late else c.draw(pair)
    _equation(c, c.rng.choice(said.TIMES).format(a, b), a, "x", b, a * b)


def compare(c: Conversation) -> None:
    def pair() -> tuple[str, int, int]:
        a, b = _operand(c.rng), _operand(c.rng)
        return (f"{min(a, b)}<{max(a, b)}", a, b) if a != b else pair()

    _, a, b = c.draw(pair)
    low, high = sorted((a, b))
    word = c.rng.choice(
        ("larger", "larger", "bigger", "greater", "more", "smaller", "smaller", "less", "lower")
    )
    if c.rng.random() < 0.6:
        ask = c.rng.choice(
            (
                "Which is {}, {} or {}?",
                "Which number is {}, {} or {}?",
                "What is {}, {} or {}?",
                "Which is {}: {} or {}?",
            )
        )
        up = word not in ("smaller", "less", "lower")
        reply = f"{high} is larger than {low}." if up else f"{low} is smaller than {high}."
        c.say(typed(c.rng, ask.format(word, a, b)), reply, f"{high if up else low}.")
    else:
        up = word not in ("smaller", "less", "lower")
        truth = (a > b) == up
        reply = f"{'Yes' if truth else 'No'}. {a} is {'larger' if a > b else 'smaller'} than {b}."
        ask = c.rng.choice(("Is {0} {2} than {1}?", "Is {0} {2} than {1}?", "{0} {3} {1}?"))
        c.say(
            typed(c.rng, ask.format(a, b, word, ">" if up else "<")),
            reply,
            reply[: reply.index(".") + 1],
        )


def count(c: Conversation) -> None:
    def ends() -> tuple[str, int, int]:
        length = c.rng.randrange(2, 10)
        low = c.rng.randrange(0, 100 - length) if c.rng.random() < 0.6 else c.rng.randrange(0, 15)
        a, b = (low, low + length) if c.rng.random() < 0.6 else (low + length, low)
        return (f"{a} to {b}", a, b)

    _, a, b = c.draw(ends)
    if a < b:
        asks = [
            "Count from {} to {}.",
            "Count from {} to {}.",
            "Can you count from {} to {}?",
            "Count up from {} to {}.",
            "Count {} to {}.",
            "List the numbers from {} to {}.",
        ]
        asks += ["Count to {1}.", "Count up to {1}."] * 2 if a == 1 else []
    else:
        asks = [
            "Count down from {} to {}.",
            "Count from {} to {}.",
            "Count from {} down to {}.",
            "Count backwards from {} to {}.",
        ]
    numbers = range(a, b + 1) if a < b else range(a, b - 1, -1)
    c.say(typed(c.rng, c.rng.choice(asks).format(a, b)), ", ".join(map(str, numbers)) + ".")


def neighbour(c: Conversation) -> None:
    n, step = c.rng.randrange(1, 99), c.rng.choice((1, -1))
    word = "after" if step == 1 else "before"
    ask = c.rng.choice(
        (
            "What comes {} {}?",
            "Which number comes {} {}?",
            "What number is {} {}?",
            "What is {} {}?",
        )
    ).format(word, n)
    c.say(typed(c.rng, ask), f"{n + step} comes {word} {n}.", f"{n + step}.")
    if step == 1 and n < 97:
        c.successor = f"{n + 2} comes after {n + 1}."


@dataclass(frozen=True)
class Fact:
    asks: list[str]
    reply: str
    short: str = ""
    then: str = ""  # the reply to "and after that?"
    capital: bool = False


def _fact(rng: random.Random) -> Fact:
    kind = rng.randrange(7)
    if kind <= 1:
        country, city = rng.choice(list(said.CAPITALS.items()))
        asks = [ask.format(country) for ask in said.CAPITAL_QUESTIONS]
        return Fact(asks, f"The capital of {country} is {city}.", f"{city}.", capital=True)
    if kind == 2:
        one, other = rng.sample(rng.choice(said.OPPOSITES.split("|")).split(), 2)
        asks = [ask.format(one) for ask in said.OPPOSITE_QUESTIONS]
        return Fact(asks, f"The opposite of {one} is {other}.", f"{other}.")
    if kind == 3:
        cycle, unit = (said.DAYS, "day") if rng.random() < 0.5 else (said.MONTHS, "month")
        i, step = rng.randrange(len(cycle)), rng.choice((1, 1, -1))
        here, there, beyond = (cycle[k % len(cycle)] for k in (i, i + step, i + 2))
        word = "after" if step == 1 else "before"
        asks = [ask.format(unit, word, here) for ask in said.NEXT_QUESTIONS]
        then = f"{beyond} comes after {there}." if step == 1 else ""
        return Fact(asks, f"{there} comes {word} {here}.", f"{there}.", then)
    if kind == 4:
        thing, colour = rng.choice(list(said.COLOURS.items()))
        asks = [ask.format(thing) for ask in said.COLOUR_QUESTIONS]
        reply = f"{thing[0].upper()}{thing[1:]} is {colour}."
        return Fact(asks, reply, f"{colour.capitalize()}.")
    if kind == 5:
        animal, sound = rng.choice(list(said.SOUNDS.items()))
        asks = [ask.format(animal) for ask in said.SOUND_QUESTIONS]
        return Fact(asks, f"A {animal} says {sound}.", f"{sound.capitalize()}.")
    question, reply = rng.choice(list(said.NUMBERS.items()))
    return Fact([ask.format(question) for ask in said.NUMBER_QUESTIONS], reply)


def facts(c: Conversation) -> None:
    fact = _fact(c.rng)
    for _ in range(50):  # a fact asked in few ways may have no sentence on the kept side
        ask = typed(c.rng, c.rng.choice(fact.asks))
        if held_out(ask) == c.held:
            c.say(ask, fact.reply, fact.short)
            c.successor, c.country = fact.then, fact.capital
            return
    facts(c)


def tell_name(c: Conversation) -> None:
    ask, name = typed(c.rng, c.rng.choice(said.TELL_NAME), said.SLOT), c.name()
    name = (
        name.lower() if ask.islower() else name.upper() if ask.isupper() and len(ask) > 4 else name
    )
    c.say(ask.replace(said.SLOT, name), f"Nice to meet you, {name}.")
    c.user_name = name


def ask_name(c: Conversation) -> None:
    reply = f"Your name is {c.user_name}." if c.user_name else said.NOT_TOLD
    c.say(
        typed(c.rng, c.rng.choice(said.ASK_NAME)), reply, f"{c.user_name}." if c.user_name else ""
    )


def repeat(c: Conversation) -> None:
    def words() -> tuple[str]:
        if c.rng.random() < 0.3 and not c.held:
            return (c.rng.choice(said.WORDS),)
        return (" ".join(made_up_name(c.rng).lower() for _ in range(c.rng.choice((1, 1, 2, 3)))),)

    text = c.draw(words)[0]
    ask = c.rng.choice(
        (
            f"Say {said.SLOT}.",
            f"Repeat after me: {said.SLOT}",
            f"Repeat: {said.SLOT}",
            f"Please say {said.SLOT}.",
            f"Say: {said.SLOT}",
            f"Say {said.SLOT}",
            f"Write {said.SLOT}.",
        )
    )
    if c.rng.random() < 0.4:
        ask = ask.lower()
    elif c.rng.random() < 0.3:
        ask = ask.rstrip(".")
    if c.rng.random() < 0.3:
        text = text.capitalize()
    c.say(ask.replace(said.SLOT, text), text + ".")


def follow_up(c: Conversation) -> None:
    """A question that needs the answer before it; where there is none, it is made first."""
    choices = ["again"] if c.last_reply and len(c.last_reply) < 60 else []
    choices += ["sum"] * 4 if c.number is not None and 0 <= c.number <= 99 else []
    choices += ["after"] * 3 if c.successor else []
    choices += ["country"] * 2 if c.country else []
    if not choices or (choices == ["again"] and c.rng.random() < 0.8):
        held, c.held = c.held, False
        c.rng.choice((add, add, subtract, facts, neighbour, facts))(c)
        c.held = held
        return follow_up(c)
    kind = c.rng.choice(choices)
    if kind == "again":
        ask = c.rng.choice(said.AGAIN)
        reply = c.last_reply
        c.say(typed(c.rng, ask), reply)
        c.messages[-1]["content"] = c.last_reply = reply  # already in style
    elif kind == "sum":
        a, plus = c.number or 0, c.rng.random() < 0.5
        b = c.rng.choice((c.rng.randrange(1, 10), c.rng.randrange(100)))
        for _ in range(60):  # a small `a` may have no pair on the kept side
            if held_out(_sum_key(a, b) if plus else f"{a}-{b}") == c.held and (plus or b <= a):
                break
            b = c.rng.randrange(100)
        else:
            c.number = None
            return follow_up(c)
        asks = said.FOLLOW_ADD if plus else said.FOLLOW_SUBTRACT
        _equation(
            c, c.rng.choice(asks).format(b), a, "+" if plus else "-", b, a + b if plus else a - b
        )
    elif kind == "after":
        ask = c.rng.choice(said.AND_AFTER)
        reply = c.successor
        c.say(typed(c.rng, ask), reply, reply.split(" ")[0] + ".")
    else:
        country, city = c.rng.choice(list(said.CAPITALS.items()))
        ask = c.rng.choice(said.AND_COUNTRY).format(country)
        c.say(typed(c.rng, ask), f"The capital of {country} is {city}.", f"{city}.")
        c.country = True
    return None


SHARES: dict[Callable[[Conversation], None], float] = {
    greet: 6, help_keys: 9, identity: 6, refuse: 9, facts: 7, limits: 2, add: 13, subtract: 12,
    times: 8, compare: 7, count: 5, neighbour: 1.5, tell_name: 6, ask_name: 7, follow_up: 9,
    repeat: 3,
}  # fmt: skip
# For the last part of the training: more of what is learnt last.
LATE_SHARES = SHARES | {
    greet: 8, facts: 12, times: 11, compare: 13, count: 6, follow_up: 10, repeat: 5,
}  # fmt: skip


def set_system(c: Conversation, style: str, named: bool) -> None:
    c.style = style
    parts = (
        [c.rng.choice(said.STYLES[style])]
        if style != "plain" or not named or c.rng.random() < 0.2
        else []
    )
    if named:
        c.bot_name = c.name()
        parts.insert(
            c.rng.randrange(len(parts) + 1), c.rng.choice(said.BOT_NAMES).format(c.bot_name)
        )
    text = " ".join(parts)
    if c.rng.random() < 0.15 and not named:
        text = text.lower()
    if c.rng.random() < 0.15:
        text = text.rstrip(".")
    c.messages.insert(0, {"role": "system", "content": text})


def start(rng: random.Random, late: bool = False) -> Conversation:
    """A conversation with or without a system prompt, nothing asked yet."""
    c = Conversation(rng, late=late)
    if rng.random() < (0.6 if late else 0.42):
        styles = ("capitals", "lower", "pirate", "brief", "plain")
        weights = (18, 8, 9, 6, 15) if late else (10, 8, 8, 4, 12)
        style = rng.choices(styles, weights=weights)[0]
        set_system(c, style, named=rng.random() < (0.6 if style == "plain" else 0.15))
    return c


def exchange(c: Conversation) -> None:
    """One more question and reply of any kind."""
    shares = dict(LATE_SHARES if c.late else SHARES)
    if c.bot_name:
        shares[identity] *= 4
    if c.user_name:
        shares[ask_name] *= 2
    c.rng.choices(list(shares), weights=list(shares.values()))[0](c)


def conversation(
    rng: random.Random, characters: int, lines: Sequence[str] = (), late: bool = False
) -> list[Message]:
    """A training conversation of at least so many characters. Of `lines` it knows nothing."""
    c = start(rng, late)
    c.lines = lines
    while sum(len(m["content"]) for m in c.messages) < characters:
        exchange(c)
    return c.messages


# ---------------------------------------------------------------- prompts for measuring


SINGLE: dict[str, Callable[[Conversation], None]] = {
    "greet": greet, "help": help_keys, "identity": identity, "refuse": refuse, "facts": facts,
    "add": add, "subtract": subtract, "times": times, "compare": compare, "count": count,
    "follow-up": follow_up, "repeat": repeat, "limits": limits,
}  # fmt: skip
KINDS = [
    *SINGLE, "memory", "memory after 3 turns", "name not told", "system name", "system capitals",
    "system lower", "system pirate", "system brief",
]  # fmt: skip


def held_out_prompts(kind: str, n: int, seed: int = 0) -> list[list[Message]]:
    """`n` conversations whose last reply is the one to be measured. Half of them start with it."""
    rng = random.Random(f"{kind} {seed}")
    return [_held_out_prompt(kind, rng, i) for i in range(n)]


def _held_out_prompt(kind: str, rng: random.Random, i: int) -> list[Message]:
    c = Conversation(rng)
    if kind == "times":
        c.late = True
    elif kind == "times, pairs left out at first":
        kind = "times"
    if kind in SINGLE:
        for _ in range(i % 4 if i % 2 else 0):
            exchange(c)
        c.held = True
        SINGLE[kind](c)
    elif kind in ("memory", "memory after 3 turns"):
        c.held = True
        tell_name(c)
        c.held = False
        for _ in range(3 if "3" in kind else 0):
            rng.choice((greet, help_keys, refuse, facts, add, subtract, count, times))(c)
        ask_name(c)
    elif kind == "name not told":
        for _ in range(i % 4):
            rng.choice((greet, help_keys, refuse, facts, add, subtract, count, times))(c)
        ask_name(c)
    elif kind == "system name":
        c.held = True
        set_system(c, "plain", named=True)
        c.held = False
        for _ in range(i % 3):
            rng.choice((greet, help_keys, facts, add, tell_name))(c)
        c.say(typed(rng, rng.choice(said.IDENTITY[1][1].split("|"))), f"My name is {c.bot_name}.")
    else:
        set_system(c, kind.removeprefix("system "), named=False)
        for _ in range(i % 3):
            rng.choice((greet, help_keys, facts, add, refuse))(c)
        c.held = True
        rng.choice((greet, help_keys, identity, refuse, facts, add, subtract))(c)
    return c.messages
