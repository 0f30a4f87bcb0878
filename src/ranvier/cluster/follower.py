"""Every rank but 0: joins, agrees, then runs what the leader sends until the leader is gone.

One thread reads and watches, one beats, the main one runs steps. `on_end` is called from the thread
that notices the end, while the main one may hang in a collective whose other side is dead: its
business is to leave the process.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from ranvier.cluster.adapter import AdapterPart, Assembly
from ranvier.cluster.agree import refuse
from ranvier.cluster.channel import Channel, ChannelFault, open_channel
from ranvier.cluster.detect import Place
from ranvier.cluster.message import (
    Beat,
    Dispatch,
    Encode,
    Facts,
    FillOn,
    FillSlot,
    Halt,
    MessageFault,
    ToFollower,
    ToLeader,
    Trouble,
    Verdict,
    decode,
    encode,
    follower_decoder,
)
from ranvier.core.errors import ClusterError, DeviceError
from ranvier.core.limits import LIMITS
from ranvier.core.step import Runner

__all__ = ["Follower", "join"]

LOG = logging.getLogger("ranvier.cluster")
RETRY_S = 0.2


def join(place: Place, key: bytes, timeout_s: float) -> Channel:
    """A channel to rank 0, tried until it listens. Raises ClusterError."""
    deadline_s, where = time.monotonic() + timeout_s, f"{place.address}:{place.port}"
    while True:
        try:
            connection = socket.create_connection((place.address, place.port), LIMITS.handshake_s)
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise ClusterError(
                    f"Rank 0 does not answer at {where} after {timeout_s:.0f} s: {error}.",
                    hint="Is it started, and may this machine reach that port?",
                ) from None
            time.sleep(RETRY_S)
            continue
        try:
            return open_channel(connection, key, place.rank)
        except (ChannelFault, EOFError, OSError) as fault:
            connection.close()
            raise ClusterError(
                f"Rank 0 at {where} refused rank {place.rank}: {str(fault) or 'it hung up'}.",
                hint="Both need the same cluster key; docs/multi-node.md says where it is from.",
            ) from None


class Follower:
    """One rank's side of the channel. `on_end(error)` is called once; None: the server stopped."""

    def __init__(
        self, channel: Channel, host: str, on_end: Callable[[ClusterError | None], None]
    ) -> None:
        self._channel = channel
        self._host = host
        self._on_end = on_end
        self._lock = threading.Lock()
        self._is_over = False
        self._step = 0
        self._arriving = Assembly()
        self._placing: Iterator[None] = iter(())
        self._orders: queue.SimpleQueue[ToFollower | None] = queue.SimpleQueue()
        for work in (self._hear, self._beat):
            threading.Thread(target=work, name=f"cluster {work.__name__[1:]}", daemon=True).start()

    def agree(self, stage: str, values: dict[str, str]) -> None:
        """Tell the leader, and hear whether all ranks are equal. Raises ConfigError, ClusterError.

        Waits as long as the leader is there: it may have to build an artifact first.
        """
        self._send(Facts(stage, self._host, values))
        verdict = self._orders.get()
        if verdict is None:
            raise ClusterError("Rank 0 is gone.")
        if not isinstance(verdict, Verdict) or verdict.stage != stage:
            raise ClusterError(f"Rank 0 is at another stage than {stage!r}.")
        refuse(stage, verdict.differences)

    def run(self, runner: Runner, flying_max: int = 1) -> None:
        """Run what comes until the end. Raises ClusterError when a step fails here.

        `flying_max`: steps that are launched before the oldest is waited for, as at the leader.
        """
        flying: deque[object] = deque()
        while (order := self._orders.get()) is not None:
            try:
                self._follow(order, runner, flying)
                while len(flying) >= flying_max:
                    runner.collect(flying.popleft())
            except (DeviceError, ValueError) as error:
                text = f"a step failed: {error}"
                self._send(Trouble(text))
                raise ClusterError(f"The cluster stopped: {text}") from error

    def close(self) -> None:
        """End the connection; the leader takes it for the loss of this rank."""
        self._over(ClusterError("This rank was told to stop."), is_told=False)

    def _follow(self, order: ToFollower, runner: Runner, flying: deque[object]) -> None:
        if isinstance(order, Encode):
            runner.encode(order.image, order.rows)
        elif isinstance(order, AdapterPart):
            self._arriving.take(order)
        elif isinstance(order, FillSlot):
            adapter = None if order.is_empty else self._arriving.adapter()
            self._placing = runner.place_adapter(order.slot, adapter)
        elif isinstance(order, FillOn):
            while flying:
                runner.collect(flying.popleft())
            next(self._placing, None)
        elif isinstance(order, Dispatch):
            if order.step != self._step + 1:
                raise DeviceError(f"step {order.step} came after step {self._step}")
            self._step = order.step
            flying.append(runner.dispatch(order.plan))

    def _send(self, message: ToLeader) -> None:
        with contextlib.suppress(OSError):  # the reader finds the end of the connection
            self._channel.send(encode(message))

    def _hear(self) -> None:
        """Read until the leader is gone or silent."""
        decoder = follower_decoder()
        try:
            while True:
                message = decode(self._channel.receive(), decoder)
                if isinstance(message, Halt):
                    error = ClusterError(f"The cluster stopped: {message.reason}.")
                    self._over(error if message.reason else None)
                    return
                if not isinstance(message, Beat):
                    self._orders.put(message)
        except (EOFError, OSError):
            self._over(ClusterError("The cluster stopped: rank 0 is gone."))
        except (ChannelFault, MessageFault) as fault:
            self._over(ClusterError(f"The cluster stopped: rank 0 sent {fault}."))

    def _beat(self) -> None:
        """Beat, and look for the leader's silence."""
        while not self._is_over:
            time.sleep(LIMITS.beat_s)
            silent_s = time.monotonic() - self._channel.heard_s
            if silent_s > LIMITS.silence_s:
                self._over(
                    ClusterError(
                        f"The cluster stopped: rank 0 has been silent for {silent_s:.0f} s."
                    )
                )
                return
            with contextlib.suppress(OSError):
                self._channel.try_send(encode(Beat(self._step)))

    def _over(self, error: ClusterError | None, *, is_told: bool = True) -> None:
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        if error is not None and is_told:
            LOG.error("%s", error.message)
        self._channel.close()
        self._orders.put(None)
        if is_told:
            self._on_end(error)
