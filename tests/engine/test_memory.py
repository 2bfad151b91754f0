"""Memory is looked at before it is needed: what is said of it, given up, and refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tui_chat.engine import memory as memory_module
from tui_chat.engine import resident
from tui_chat.engine.engine import Lane
from tui_chat.engine.events import (
    Counted,
    CountTokens,
    Failed,
    Load,
    Loaded,
    LoadFailed,
    Memory,
    Prompt,
    Started,
    Stepped,
)
from tui_chat.engine.memory import available_memory, left_in_groups

from .small import GREEDY, Ran, opened, raw, run, spec
from .test_worker import CPU, Driver, ask

ROW = 2 * 40 * 4  # bytes of a token's keys and values in the small models
IDS = Prompt(mode="raw", ids=tuple(range(39)) * 6)  # 234, which take the first 256 rows


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "SMALL", 0)


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    driver.worker.start()
    yield driver
    assert driver.worker.close(timeout=20)


def group(folder: Path, limit: str, used: str, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {limit: files["most"], used: files["taken"]}.items():
        (folder / name).write_text(text + "\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files['cached']}\n")


def test_the_limit_of_a_container_counts_and_files_it_has_read_do_not(tmp_path: Path) -> None:
    two = ("memory.max", "memory.current")
    group(tmp_path, *two, most="1000", taken="700", cached="50")
    group(tmp_path / "user" / "app", *two, most="max", taken="100", cached="0")
    group(tmp_path / "user", *two, most="900", taken="850", cached="10")
    assert list(left_in_groups("0::/user/app\n", tmp_path)) == [60, 350]
    assert list(left_in_groups("0::/../elsewhere\n", tmp_path)) == [350]
    one = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(tmp_path / "memory" / "job", *one, most="500", taken="600", cached="0")
    assert list(left_in_groups("5:cpu:/job\n4:memory:/job\n", tmp_path)) == [0]
    assert list(left_in_groups("", tmp_path)) == []


def test_the_machine_has_some_memory() -> None:
    assert 2**20 < available_memory() < 2**50


def test_a_prompt_that_does_not_fit_is_refused_before_it_is_read(long_noise: str) -> None:
    lane = Lane(opened(long_noise))
    lane.make_room = lambda needed: 5000
    ran = Ran(lane.reply(IDS, GREEDY))
    (failed,) = ran.events
    assert isinstance(failed, Failed)
    assert str(failed.error) == (
        "there is not enough memory: 235 tokens need 82 kB, and 5.0 kB is free. "
        "Shorten the prompt, or open the checkpoint with --kv-cache int8."
    )
    assert lane.cache.nbytes == 0


def test_a_reply_ends_with_what_is_written_where_the_memory_ends(long_noise: str) -> None:
    lane = Lane(opened(long_noise))
    asked: list[int] = []

    def make_room(needed: int) -> int:
        asked.append(needed)
        return 10**9 if len(asked) == 1 else 5

    lane.make_room = make_room
    plain = run(Lane(opened(long_noise)), IDS, GREEDY.with_(max_new_tokens=100))
    events = list(lane.reply(IDS, GREEDY.with_(max_new_tokens=100)).events())
    assert asked == [256 * ROW, 256 * ROW]
    assert isinstance(events[-1], Failed) and "257 tokens need 82 kB" in str(events[-1].error)
    made = [step.id for event in events if isinstance(event, Stepped) for step in event.steps]
    assert made == list(plain.finished.ids)[: 256 - 234 + 1]
    lane.make_room = lambda needed: 10**9
    again = run(lane, IDS, GREEDY.with_(max_new_tokens=100))
    assert again.started.reused_tokens == 233
    assert again.finished.ids == plain.finished.ids


def test_what_is_idle_goes_before_a_reply_runs_out(
    driver: Driver, alphabet: str, noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.open("a", alphabet)
    driver.open("a", noise)
    kept = driver.worker._resident
    assert len(kept) == 2
    monkeypatch.setattr(resident, "available_memory", lambda device: 10 if len(kept) > 1 else 10**9)
    driver.send(ask("abc"))
    assert driver.finished("r").reason == "length"
    assert [one.info.path for one in kept.checkpoints()] == [noise]


def test_a_checkpoint_that_does_not_fit_is_refused_and_the_lane_keeps_what_it_had(
    driver: Driver, alphabet: str, noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.open("a", alphabet)
    monkeypatch.setattr(resident, "available_memory", lambda device: -(10**9))
    driver.send(Load(lane="a", path=noise, options=CPU))
    driver.until(lambda: driver.of(LoadFailed))
    error = str(driver.of(LoadFailed)[0].error)
    assert error.startswith("there is not enough memory for this checkpoint: its weights need ")
    assert "0 B is free" in error
    monkeypatch.undo()
    driver.send(ask("abc"))
    assert driver.finished("r").text == "defghijk"


def test_a_checkpoint_that_only_fits_in_place_of_the_lane_s_gets_it(
    driver: Driver, alphabet: str, noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = driver.open("a", alphabet)
    kept = driver.worker._resident
    monkeypatch.setattr(
        resident,
        "available_memory",
        lambda device: loaded.weight_bytes // 2 if len(kept) else 10**9,
    )
    driver.send(Load(lane="a", path=noise, options=CPU))
    driver.until(lambda: len(driver.of(Loaded)) == 2 or driver.of(LoadFailed))
    assert driver.of(Loaded)[-1].info.path == noise
    assert [one.info.path for one in kept.checkpoints()] == [noise]
    driver.send(ask("abc"))
    driver.finished("r")


def test_counting_tokens_tells_what_they_will_take(
    driver: Driver, long_noise: str, alphabet: str
) -> None:
    other = driver.open("a", alphabet)
    loaded = driver.open("a", long_noise)
    assert loaded.cache_bytes_per_token == ROW

    def memory(**more: int) -> Memory:
        before = len(driver.of(Counted))
        driver.send(CountTokens(lane="a", request_id="c", prompt=raw("abc"), **more))
        driver.until(lambda: len(driver.of(Counted)) > before)
        told = driver.of(Counted)[-1].memory
        assert told is not None
        return told

    first = memory(behind=20, reply_tokens=277)
    assert first.weights == other.weight_bytes + loaded.weight_bytes
    assert (first.caches, first.idle) == (0, other.weight_bytes)
    assert (first.needs, first.tokens) == (512 * ROW, 300)
    assert first.fits and not first.tight
    driver.send(ask("abc"))
    driver.finished("r")
    then = memory(behind=11, reply_tokens=10**6)
    assert (then.caches, then.needs) == (256 * ROW, (1024 - 256) * ROW)
    assert then.tokens == spec(1024).context_length
    assert [event.reused_tokens for event in driver.of(Started)] == [0]


@pytest.mark.parametrize(
    ("free", "idle", "needs", "fits", "tight"),
    [
        (20 * 10**9, 0, 10**9, True, False),
        (2 * 10**9, 0, 19 * 10**8, True, True),
        (10**9, 10**9, 19 * 10**8, True, True),
        (10**9, 0, 19 * 10**8, False, True),
    ],
)
def test_memory_is_tight_before_it_is_too_small(
    free: int, idle: int, needs: int, fits: bool, tight: bool
) -> None:
    told = Memory(weights=10**9, caches=0, idle=idle, free=free, needs=needs, tokens=1)
    assert (told.fits, told.tight) == (fits, tight)


def test_branches_count_as_idle_and_go_with_it(long_noise: str) -> None:
    kept, loaded = resident.Resident(budget=10**9), opened(long_noise)
    kept.put(("key",), loaded, set())
    lane = Lane(loaded, "a")
    in_use = {id(loaded)}
    run(lane, IDS, GREEDY)
    run(lane, Prompt(mode="raw", ids=(*(IDS.ids or ())[:100], 7)), GREEDY)
    branch = loaded.prefixes.nbytes
    assert branch == (234 + 8 - 1 - 100) * ROW == kept.idle_bytes("cpu", in_use)
    kept.budget = branch - 1
    kept.trim(in_use)
    assert loaded.prefixes.nbytes == 0 and len(kept) == 1
