"""One thread that writes chats, so that waiting for the disk never holds up the screen.

Calls mirror the store's and return a Future, done once the change is on the disk. Text of a running
reply is written at most twice a second, the newest only; every other call goes to the disk at once
and takes with it what waits.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from tui_chat.conversation import Message, Receipt
from tui_chat.errors import SessionError
from tui_chat.sessions.records import ChatMeta
from tui_chat.sessions.store import Store

INTERVAL = 0.5  # seconds between two writes of a running reply
RETRY = 5.0  # seconds between attempts while saving fails


@dataclass(slots=True, eq=False)
class _Write:
    run: Callable[[Store], None]
    reply: str = ""  # id of the reply whose text this is, "" for every other call
    at_once: bool = True
    done: Future[None] = field(default_factory=Future)
    replaced: list[Future[None]] = field(default_factory=list)  # of older texts of the reply


class SessionWriter:
    """Writes into the chats of `store` (a Store or its path) from a thread of its own.

    `on_error` is called from that thread with a SessionError when saving begins to fail and with
    None when it works again. What could not be saved because of the disk is kept and tried again;
    `close` makes a last attempt.
    """

    def __init__(
        self,
        store: Store | Path,
        on_error: Callable[[SessionError | None], None] | None = None,
        *,
        interval: float = INTERVAL,
        retry: float = RETRY,
    ) -> None:
        self._source = store
        self._on_error = on_error or (lambda error: None)
        self._interval = interval
        self._retry = retry
        self._wake = threading.Condition()
        self._waiting: list[_Write] = []
        self._busy = False
        self._failing = False
        self._hurry = False
        self._closed = False
        self._thread = threading.Thread(target=self._main, name="sessions", daemon=True)
        self._thread.start()

    # ---- calls from the screen

    def save_conversation(self, meta: ChatMeta) -> Future[None]:
        return self._put(_Write(lambda store: store.save_conversation(meta)))

    def add_message(
        self, conversation: str, message: Message, *, finished: bool = True
    ) -> Future[None]:
        return self._put(
            _Write(lambda store: store.add_message(conversation, message, finished=finished))
        )

    def reopen_reply(self, message_id: str) -> Future[None]:
        return self._put(_Write(lambda store: store.reopen_reply(message_id)))

    def update_reply(
        self, message_id: str, text: str, receipt: Receipt | None, finished: bool
    ) -> Future[None]:
        return self._put(
            _Write(
                lambda store: store.update_reply(message_id, text, receipt, finished),
                reply=message_id,
                at_once=finished,
            )
        )

    def set_leaf(self, conversation: str, leaf: str | None) -> Future[None]:
        return self._put(_Write(lambda store: store.set_leaf(conversation, leaf)))

    def rename(self, conversation: str, title: str) -> Future[None]:
        return self._put(_Write(lambda store: store.rename(conversation, title)))

    def pin(self, conversation: str, pinned: bool = True) -> Future[None]:
        return self._put(_Write(lambda store: store.pin(conversation, pinned)))

    def delete(self, conversation: str) -> Future[None]:
        return self._put(_Write(lambda store: store.delete(conversation)))

    def undelete(self, conversation: str) -> Future[None]:
        return self._put(_Write(lambda store: store.undelete(conversation)))

    def flush(self, timeout: float | None = 5.0) -> bool:
        """Wait until all that was given is on the disk; False when it is not, after `timeout`
        seconds.
        """
        with self._wake:
            self._hurry = True
            self._wake.notify_all()
            quiet = self._wake.wait_for(
                lambda: self._failing or not (self._waiting or self._busy), timeout
            )
            return quiet and not self._waiting

    def close(self, timeout: float | None = 5.0) -> bool:
        """Write what waits and end the thread; False when something could not be saved."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive() and not self._waiting

    def _put(self, write: _Write) -> Future[None]:
        with self._wake:
            if self._closed:
                _resolve(write, SessionError("the chat was not saved", "it was closed"))
                return write.done
            if write.reply:
                # A newer text makes the older one of the same reply pointless; whoever waits for
                # that gets this.
                for older in list(self._waiting):
                    if older.reply == write.reply and not older.at_once:
                        self._waiting.remove(older)
                        write.replaced = [f for f in (older.done, *older.replaced) if not f.done()]
            self._waiting.append(write)
            self._wake.notify_all()
        return write.done

    # ---- the thread

    def _main(self) -> None:
        store: Store | None = None
        last = 0.0
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    break
                rest = self._retry if self._failing else self._interval
                pause = last + rest - time.monotonic()
                if pause > 0 and not self._due():
                    self._wake.wait_for(self._due, pause)
                batch, self._waiting = self._waiting, []
                self._hurry, self._busy = False, True
            failed: SessionError | None = None
            try:
                if store is None:
                    store = self._connected()
                self._write(store, batch)
            except SessionError as error:
                failed = error
            except BaseException as error:  # the thread must live, and the screen hear of it
                failed = SessionError(
                    "the chat could not be saved", f"{type(error).__name__}: {error}"
                )
            last = time.monotonic()
            if not self._settle(batch, failed):
                break
        if store is not None and store is not self._source:
            store.close()

    def _connected(self) -> Store:
        if isinstance(self._source, Store):
            return self._source.twin()
        store = Store(self._source)
        if store.notice:
            self._tell(SessionError(store.notice))
        return store

    def _due(self) -> bool:
        if self._closed or self._hurry:
            return True
        # While saving fails, what is new is still tried at once: somebody waits to hear of it.
        return any(write.at_once and not write.done.done() for write in self._waiting)

    def _write(self, store: Store, batch: list[_Write]) -> None:
        """One transaction for all.

        A call that cannot be done fails alone, a disk that fails fails them all.
        """
        refused: dict[int, SessionError] = {}
        with store.transaction():
            for number, write in enumerate(batch):
                try:
                    write.run(store)
                except SessionError as error:
                    if _from_disk(error):
                        raise
                    refused[number] = error
                except Exception as error:  # one bad call must not hold up all that follow
                    refused[number] = SessionError("the chat could not be saved", repr(error))
        for number, write in enumerate(batch):
            reason = refused.get(number)
            _resolve(write, reason)
            if reason is not None:
                self._tell(reason)

    def _settle(self, batch: list[_Write], failed: SessionError | None) -> bool:
        """Tell who waits; False when the thread is to end with things unsaved."""
        with self._wake:
            began, ended = failed and not self._failing, self._failing and not failed
            self._failing = failed is not None
            if failed:
                self._waiting = batch + self._waiting
            self._busy = False
            self._wake.notify_all()
            going_on = not (failed and self._closed)
        if failed:
            for write in batch:
                _resolve(write, failed)
        if began or ended:
            self._tell(failed)
        return going_on

    def _tell(self, error: SessionError | None) -> None:
        with contextlib.suppress(Exception):  # a screen that is gone must not end the saving
            self._on_error(error)


def _from_disk(error: SessionError) -> bool:
    """Whether trying again may help, in contrast to a call that can never be done."""
    never = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError)
    return isinstance(error.__cause__, (OSError, sqlite3.DatabaseError)) and not isinstance(
        error.__cause__, never
    )


def _resolve(write: _Write, error: SessionError | None) -> None:
    for future in (write.done, *write.replaced):
        if future.done():
            continue  # it failed before, and the write was tried again
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
