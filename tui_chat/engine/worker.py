"""The thread in which models run: it takes requests, advances every lane in turn, and emits events.

Replies take turns of a few milliseconds (schedule.py), and the thread looks at its requests in
between, so that a stop or a turned knob is heard within one token or a part of a piece of a prompt.
No locks: requests come through a queue, events leave through `emit`. torch is imported by the first
Load, not by importing this module.
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tui_chat.engine.blame import wrapped
from tui_chat.engine.drafts import forget_draft, set_draft
from tui_chat.engine.events import (
    CancelLoad,
    Counted,
    CountTokens,
    Event,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Question,
    Request,
    SetDraft,
    SetSampling,
    ShowPrompt,
    Shutdown,
    Stats,
    Stop,
    Unload,
    Unloaded,
)
from tui_chat.engine.forecast import forecast, room_for_weights
from tui_chat.engine.questions import answer
from tui_chat.engine.resident import Resident
from tui_chat.engine.schedule import Schedule
from tui_chat.engine.torch_import import import_torch
from tui_chat.errors import CheckpointError, EngineError, TuiChatError, UsageError

if TYPE_CHECKING:
    from tui_chat.engine.engine import Lane
    from tui_chat.engine.load import LoadedCheckpoint

log = logging.getLogger(__name__)

PROGRESS_EVERY = 0.03  # seconds between two LoadProgress of one stage


class Worker:
    """Start it, `send` requests from any thread, receive events through `emit` in this worker's
    thread.
    """

    def __init__(self, emit: Callable[[Event], None], *, memory_budget: int | None = None) -> None:
        self._emit_event = emit
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._pending: deque[Request] = deque()
        self._questions: dict[tuple[str, str], Question] = {}
        self._lanes: dict[str, Lane] = {}
        self._running = Schedule(self._emit, self._blame, lambda: not self._requests.empty())
        self._resident = Resident(memory_budget)
        self._loading: Load | None = None
        self._load_cancelled = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, request: Request) -> None:
        """Hand over a request; returns at once."""
        if isinstance(request, Shutdown):
            self._closing = True
        self._requests.put(request)

    def close(self, timeout: float = 2.0) -> bool:
        """End the thread; False when it is still busy after `timeout` seconds (it dies with the
        process).
        """
        self.send(Shutdown())
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # ---- the loop

    def _run(self) -> None:
        while not self._closing:
            try:
                self._turn()
            except (
                BaseException
            ) as error:  # a panic in a tokenizer is no Exception; the thread lives on
                log.exception("the model thread stumbled")
                self._emit(Failed(lane="", request_id="", error=wrapped(error)))
        for lane in self._running.lanes():
            self._running.end(lane)

    def _turn(self) -> None:
        """One round: all requests that wait, then a turn of what runs."""
        self._collect(block=not self._running and not self._pending)
        while self._pending:
            self._handle(self._pending.popleft())
        for question in list(self._questions.values()):
            self._answer(question)
        self._running.turn()

    def _collect(self, *, block: bool) -> None:
        """Move what was sent to `_pending`; with `block` sleep until there is something."""
        if block:
            self._pending.append(self._requests.get())
        while True:
            try:
                self._pending.append(self._requests.get_nowait())
            except queue.Empty:
                return

    def _emit(self, event: Event) -> None:
        try:
            self._emit_event(event)
        except Exception:
            log.exception("nobody took %s", type(event).__name__)

    def _handle(self, request: Request) -> None:
        match request:
            case Load():
                self._load(request)
            case Generate():
                self._generate(request)
            case SetSampling(lane=lane, params=params):
                if (reply := self._running.reply(lane)) is not None:
                    reply.params = params
            case SetDraft():
                self._emit(set_draft(self._lanes, request))
            case Stop(request_id=request_id):
                self._running.stop(request_id)
            case CountTokens() | ShowPrompt():
                self._questions[request.lane, request.request_id] = request
            case Unload(lane=lane):
                self._running.end(lane)
                self._drop_lane(lane)
                self._emit(Unloaded(lane=lane))
            case CancelLoad() | Shutdown():
                pass  # nothing is being loaded; the loop sees `_closing`

    # ---- replies

    def _generate(self, request: Generate) -> None:
        self._running.end(request.lane)
        lane = self._lanes.get(request.lane)
        if lane is None:
            error = UsageError("there is no checkpoint to answer", "", "Open one first")
            self._emit(Failed(lane=request.lane, request_id=request.request_id, error=error))
            return
        try:
            reply = lane.reply(request.prompt, request.params, request.request_id)
        except BaseException as error:
            self._blame(request.lane, request.request_id, error)
            return
        self._running.add(request.lane, reply)

    def _blame(self, lane: str, request_id: str, error: BaseException) -> None:
        """A reply that failed in a way nobody foresaw."""
        log.error("a reply failed", exc_info=error)
        self._emit(Failed(lane=lane, request_id=request_id, error=wrapped(error)))
        if lane in self._lanes:
            # After the screen has heard of it: a device that is lost may refuse this as well.
            self._lanes[lane].drop_cache()

    def _answer(self, question: Question) -> None:
        del self._questions[question.lane, question.request_id]
        lane = self._lanes.get(question.lane)
        if lane is None:
            return
        try:
            answered = answer(lane, question)
            if isinstance(answered, Counted) and isinstance(question, CountTokens):
                tokens = question.behind + answered.tokens + question.reply_tokens
                memory = forecast(lane, self._lanes, self._resident, tokens)
                answered = replace(answered, memory=memory)
            self._emit(answered)
        except BaseException as error:
            log.warning("cannot answer about a prompt", exc_info=error)

    # ---- loading

    def _load(self, request: Load) -> None:
        """Open a checkpoint into a lane. The lane keeps what it had until the new one is there."""
        self._running.end(request.lane)
        self._loading, self._load_cancelled = request, False
        began = time.perf_counter()
        try:
            loaded = self._opened(request)
            from tui_chat.engine.engine import Lane

            lane = self._lanes.get(request.lane)
            if lane is None or lane.checkpoint is not loaded:
                lane = self._resident.wake(request.lane, loaded)
            if lane is None:
                lane = Lane(loaded, request.lane)  # makes its cache: may run out of memory
            lane.make_room = functools.partial(self._make_room, loaded.device)
        except BaseException as error:
            cancelled = self._load_cancelled
            if not isinstance(error, TuiChatError):
                log.error("cannot open %s", request.path, exc_info=error)
            self._emit(
                LoadFailed(
                    lane=request.lane,
                    path=request.path,
                    error=wrapped(error),
                    cancelled=cancelled,
                )
            )
            return
        finally:
            self._loading = None
        if self._lanes.get(request.lane) is not lane:
            self._drop_lane(request.lane)
            self._lanes[request.lane] = lane
        self._emit(
            Loaded(
                lane=request.lane,
                info=loaded.info,
                device=loaded.device,
                dtype=loaded.dtype,
                context_length=loaded.context_length,
                vocab_size=loaded.offered,
                weight_bytes=loaded.model.weight_bytes,
                cache_bytes_per_token=loaded.cache_bytes_per_token,
                seconds=time.perf_counter() - began,
            )
        )

    def _opened(self, request: Load) -> LoadedCheckpoint:
        stage, last = "", 0.0

        def progress(at: str, done: float) -> None:
            nonlocal stage, last
            now = time.perf_counter()
            if at != stage or now - last >= PROGRESS_EVERY:
                stage, last = at, now
                self._emit(LoadProgress(lane=request.lane, stage=at, done=done))

        progress("starting torch", 0.0)
        try:
            import_torch()
        except ImportError as error:
            raise EngineError(
                "torch cannot be imported", str(error).splitlines()[0], "Install it again"
            ) from error
        from tui_chat.engine import load

        progress("reading", 0.0)
        info = load.describe_patiently(request.path, request.options, self._breathe)
        key = Resident.key(info, request.options)
        loaded = self._resident.get(key)
        if loaded is None:
            device = str(load.choose_device(request.options.device))
            wish, resident, before = request.options, self._resident, self._lanes.get(request.lane)
            leaving = None if before is None else before.checkpoint
            del before
            if room_for_weights(info, wish, device, resident, self._in_use(), leaving):
                leaving = None
                self._drop_lane(request.lane)
                room_for_weights(info, wish, device, resident, self._in_use())
            loaded = load.load_checkpoint(
                request.path, request.options, progress, self._breathe, info=info
            )
        self._resident.put(key, loaded, self._in_use())
        return loaded

    def _in_use(self) -> set[int]:
        """The checkpoints that lanes hold."""
        return {id(lane.checkpoint) for lane in self._lanes.values()}

    def _make_room(self, device: str, needed: int) -> int:
        return self._resident.make_room(needed, device, self._in_use())

    def _breathe(self) -> bool:
        """While a checkpoint loads: hear what cannot wait, let other lanes run. True: give up
        loading.
        """
        assert self._loading is not None
        self._collect(block=False)
        later: deque[Request] = deque()
        while self._pending:
            request = self._pending.popleft()
            match request:
                case CancelLoad(lane=lane) if lane == self._loading.lane:
                    self._load_cancelled = True
                    later = self._without_load(later, lane)
                case Load(lane=lane) if lane == self._loading.lane:
                    self._load_cancelled = True  # a newer wish for the same lane
                    later.append(request)
                case Stop(request_id=request_id):
                    self._running.stop(request_id)
                    later = self._without(later, request_id)
                case SetSampling() | CountTokens() | ShowPrompt():
                    self._handle(request)
                case Generate(lane=lane) if lane != self._loading.lane:
                    self._handle(request)
                case _:
                    later.append(request)
        self._pending = later
        self._running.turns()
        return self._load_cancelled or self._closing

    def _without_load(self, waiting: deque[Request], lane: str) -> deque[Request]:
        """`waiting` without the loads of a lane, which are answered: given up before they began."""
        kept: deque[Request] = deque()
        for request in waiting:
            if isinstance(request, Load) and request.lane == lane:
                error = CheckpointError("the checkpoint was not opened", "loading was cancelled")
                self._emit(LoadFailed(lane=lane, path=request.path, error=error, cancelled=True))
            else:
                kept.append(request)
        return kept

    def _without(self, waiting: deque[Request], request_id: str) -> deque[Request]:
        """`waiting` without the question of that id, which is answered: stopped before it began."""
        kept: deque[Request] = deque()
        for request in waiting:
            if isinstance(request, Generate) and request.request_id == request_id:
                self._emit(
                    Finished(
                        request_id=request_id,
                        lane=request.lane,
                        reason="cancelled",
                        text="",
                        ids=(),
                        stats=Stats(),
                    )
                )
            else:
                kept.append(request)
        return kept

    def _drop_lane(self, name: str) -> None:
        """Free the name. What the lane has read rests, for when its checkpoint comes back."""
        lane = self._lanes.pop(name, None)
        if lane is not None:
            forget_draft(self._lanes, name)
            lane.drafting = None
            self._resident.rest(lane)
        self._resident.trim(self._in_use())
