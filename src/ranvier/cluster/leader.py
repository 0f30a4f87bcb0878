"""Rank 0: gathers the others, agrees with them, sends them every step, and notices their loss.

A lost rank is the end of all: the group fails once, tells whoever is left, and calls `on_failure`,
whose business it is to answer what is open and to leave. Once every rank is there nothing listens
any more, so that a stranger finds no port.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable

from ranvier.cluster.agree import compare, refuse
from ranvier.cluster.channel import Channel, ChannelFault, accept_channel
from ranvier.cluster.detect import Place
from ranvier.cluster.message import (
    Beat,
    Facts,
    Halt,
    MessageFault,
    ToFollower,
    Trouble,
    Verdict,
    decode,
    encode,
    leader_decoder,
)
from ranvier.core.errors import ClusterError, ConfigError
from ranvier.core.limits import LIMITS

__all__ = ["Group", "Member"]

LOG = logging.getLogger("ranvier.cluster")
STRANGERS_MAX = 16
"""Connections that may be in their handshake at once."""
TELL_S = 10.0
"""Between two lines about who is waited for."""
AGAIN = "Every rank stops; a supervisor may start them again."


class Member:
    """Another rank as the leader sees it."""

    def __init__(self, rank: int, channel: Channel, host: str) -> None:
        self.rank = rank
        self.channel = channel
        self.host = host
        self.facts: queue.SimpleQueue[Facts | None] = queue.SimpleQueue()
        self.step = 0

    @property
    def name(self) -> str:
        return f"rank {self.rank} ({self.host})"


class Group:
    """The followers of one leader. `on_failure` is called once, from the thread that noticed.

    `resolve_s`: how long to wait for a name service that does not know this host yet.
    """

    def __init__(
        self,
        place: Place,
        key: bytes,
        on_failure: Callable[[ClusterError], None],
        *,
        resolve_s: float = 0.0,
    ) -> None:
        self.place = place
        self.members: dict[int, Member] = {}
        self.error: ClusterError | None = None
        self._key = key
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._is_closed = False
        self._joined: queue.SimpleQueue[Member] = queue.SimpleQueue()
        self._strangers = threading.Semaphore(STRANGERS_MAX)
        self._listener = _listen(place, time.monotonic() + resolve_s)
        self.on_beat: Callable[[], None] | None = None
        """Called at every beat of the leader, from a thread of its own."""
        threading.Thread(target=self._watch, name="cluster watch", daemon=True).start()

    def gather(self, timeout_s: float) -> None:
        """Wait until every rank is connected. Raises ClusterError."""
        deadline_s = time.monotonic() + timeout_s
        threading.Thread(target=self._accept, name="cluster accept", daemon=True).start()
        told_s = time.monotonic()
        while missing := self._missing():
            now_s = time.monotonic()
            if now_s > deadline_s:
                raise self.fail(f"ranks {_listed(missing)} did not come within {timeout_s:.0f} s")
            if now_s - told_s > TELL_S:
                told_s = now_s
                LOG.info("waiting for ranks %s at %s", _listed(missing), self._where())
            with contextlib.suppress(queue.Empty):
                self._enter(self._joined.get(timeout=0.1))
            self.check()
        _hush(self._listener)

    def agree(self, stage: str, ours: dict[str, str], timeout_s: float) -> None:
        """Compare with every rank. Raises ConfigError that names differences; ClusterError."""
        deadline_s, differences = time.monotonic() + timeout_s, []
        for member in self.members.values():
            facts = self._facts_of(member, stage, deadline_s)
            member.host = facts.host[:64]
            differences += compare(ours, facts.values, member.name)
        self.broadcast(Verdict(stage, differences))
        refuse(stage, differences)

    def broadcast(self, message: ToFollower) -> None:
        """Send one message to every rank: encoded once. Raises ClusterError."""
        self.check()
        body = encode(message)
        for member in self.members.values():
            try:
                member.channel.send(body)
            except OSError as error:
                raise self.fail(f"{member.name} is gone: {error}") from None

    def check(self) -> None:
        """Raise the error that ended the group."""
        if self.error is not None:
            raise self.error

    def fail(self, reason: str) -> ClusterError:
        """End the group, once; the error that ended it."""
        with self._lock:
            if self.error is not None or self._is_closed:
                return self.error or ClusterError(f"The cluster stopped: {reason}.")
            self.error = error = ClusterError(f"The cluster stopped: {reason}.", hint=AGAIN)
        LOG.error("%s", error.message)
        self._end(Halt(reason))
        self._on_failure(error)
        return error

    def close(self) -> None:
        """Tell every rank that the server stops."""
        with self._lock:
            if self.error is not None or self._is_closed:
                return
            self._is_closed = True
        self._end(Halt())

    def _end(self, halt: Halt) -> None:
        """The last word to every rank, without waiting for one that does not read."""
        _hush(self._listener)
        body = encode(halt)

        def tell() -> None:
            for member in list(self.members.values()):
                with contextlib.suppress(OSError):
                    member.channel.try_send(body, LIMITS.beat_s / 4)
            told.set()

        told = threading.Event()
        threading.Thread(target=tell, name="cluster end", daemon=True).start()
        told.wait(LIMITS.beat_s)

    def _missing(self) -> list[int]:
        return [rank for rank in range(1, self.place.count) if rank not in self.members]

    def _where(self) -> str:
        return f"{self.place.address}:{self.place.port}"

    def _accept(self) -> None:
        """Take connections until the listener is closed; each proves itself in its own thread."""
        while True:
            try:
                connection, (host, *_) = self._listener.accept()
            except OSError:
                return
            if not self._strangers.acquire(blocking=False):
                LOG.warning("a connection from %s is refused: too many at once", host)
                connection.close()
                continue
            threading.Thread(
                target=self._meet, args=(connection, host), name="cluster meet", daemon=True
            ).start()

    def _meet(self, connection: socket.socket, host: str) -> None:
        try:
            channel, rank = accept_channel(connection, self._key)
        except (ChannelFault, EOFError, OSError) as fault:
            LOG.warning("a connection from %s is refused: %s", host, str(fault) or "it ended")
            connection.close()
        else:
            self._joined.put(Member(rank, channel, host))
        finally:
            self._strangers.release()

    def _enter(self, member: Member) -> None:
        """A rank that has proved itself joins, or is told why it may not."""
        reason = ""
        if not 0 < member.rank < self.place.count:
            reason = f"rank {member.rank} is not in [1, {self.place.count})"
        elif member.rank in self.members:
            reason = f"rank {member.rank} is there already, from {self.members[member.rank].host}"
        if reason:
            LOG.warning("a connection from %s is refused: %s", member.host, reason)
            with contextlib.suppress(OSError):
                member.channel.send(encode(Halt(reason)))
            member.channel.close()
            return
        self.members[member.rank] = member
        LOG.info("%s is there", member.name)
        threading.Thread(
            target=self._hear, args=(member,), name=f"cluster rank {member.rank}", daemon=True
        ).start()

    def _facts_of(self, member: Member, stage: str, deadline_s: float) -> Facts:
        while True:
            self.check()
            if time.monotonic() > deadline_s:
                raise self.fail(f"{member.name} did not reach {stage!r} in time")
            try:
                facts = member.facts.get(timeout=0.1)
            except queue.Empty:
                continue
            if facts is None or facts.stage != stage:
                raise self.fail(f"{member.name} is at another stage than {stage!r}")
            return facts

    def _hear(self, member: Member) -> None:
        """Read from one rank until it is gone."""
        decoder = leader_decoder()
        try:
            while True:
                message = decode(member.channel.receive(), decoder)
                if isinstance(message, Facts):
                    member.facts.put(message)
                elif isinstance(message, Beat):
                    member.step = message.step
                elif isinstance(message, Trouble):
                    self.fail(f"{member.name}: {message.text}")
        except (EOFError, OSError):
            self.fail(f"{member.name} is gone")
        except (ChannelFault, MessageFault) as fault:
            self.fail(f"{member.name} sent {fault}")
        member.channel.close()

    def _watch(self) -> None:
        """Beat, and look for silence."""
        beat, last_s = encode(Beat()), time.monotonic()
        while self.error is None and not self._is_closed:
            time.sleep(LIMITS.beat_s)
            now_s, before_s = time.monotonic(), last_s
            last_s = now_s
            if now_s - before_s > LIMITS.silence_s:
                self.fail(f"rank 0 itself stood still for {now_s - before_s:.0f} s")
                return
            if self.on_beat is not None:
                self.on_beat()
            for member in list(self.members.values()):
                silent_s = now_s - member.channel.heard_s
                if silent_s > LIMITS.silence_s:
                    self.fail(f"{member.name} has been silent for {silent_s:.0f} s")
                    return
                with contextlib.suppress(OSError):  # its reader finds the end of the connection
                    member.channel.try_send(beat)


def _listen(place: Place, deadline_s: float) -> socket.socket:
    """The port that ranks connect to, on rank 0's address alone. Raises ConfigError."""
    while True:
        try:
            found = socket.getaddrinfo(place.address, place.port, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]
            return socket.create_server(address[:2], family=family, backlog=STRANGERS_MAX)
        except OSError as error:
            if isinstance(error, socket.gaierror) and time.monotonic() < deadline_s:
                time.sleep(LIMITS.beat_s)
                continue
            raise ConfigError(
                f"Rank 0 cannot listen on {place.address}:{place.port}: {error.strerror or error}.",
                hint="--master-addr must be an address of this machine; --master-port a free port.",
            ) from None


def _hush(listener: socket.socket) -> None:
    """Close a listening socket; a close alone leaves it open under a thread that accepts."""
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))
