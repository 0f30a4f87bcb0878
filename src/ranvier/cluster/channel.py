"""Channel: one authenticated connection between two ranks; bytes in, the same bytes out, in order.

A challenge each way proves that both ends hold the key, before anything that was sent is parsed.
Each frame then carries a MAC over its number and its bytes, under a key of this connection and this
direction: what is forged, replayed, reordered or cut is found. Nothing is encrypted.

Frame: four bytes of length, big-endian, the body, 16 bytes of MAC.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

from ranvier.core.limits import LIMITS

__all__ = ["Channel", "ChannelFault", "accept_channel", "open_channel"]

MAGIC = b"ranvier1"
HELLO = struct.Struct("8s32s")
ANSWER = struct.Struct("8s32sI32s")
PROOF_BYTES = 32
HEAD = struct.Struct(">I")
NUMBER = struct.Struct(">Q")
MAC_BYTES = 16
PART_BYTES = 2**20


class ChannelFault(Exception):
    """The other end is not who it should be, or sent what it should not."""


class Channel:
    """Sends from any thread, receives in one. `heard_s` is when the last frame came."""

    def __init__(self, connection: socket.socket, sending: bytes, receiving: bytes) -> None:
        self._connection = connection
        self._sending, self._receiving = sending, receiving
        self._sent = self._received = 0
        self._lock = threading.Lock()
        self.heard_s = time.monotonic()

    def send(self, body: bytes) -> None:
        """One frame. Blocks while the other end does not read. Raises OSError."""
        with self._lock:
            self._send(body)

    def try_send(self, body: bytes, wait_s: float = 0.0) -> None:
        """A small frame, unless another is on its way or the other end does not read.

        Raises OSError.
        """
        if not self._lock.acquire(timeout=wait_s):
            return
        try:
            if self._connection.fileno() < 0:
                return
            poll = select.poll()
            poll.register(self._connection, select.POLLOUT)
            if poll.poll(wait_s * 1e3):
                self._send(body)
        finally:
            self._lock.release()

    def receive(self) -> bytes:
        """The next frame's body. Raises EOFError, OSError, ChannelFault."""
        (size,) = HEAD.unpack(_exactly(self._connection, HEAD.size))
        if size > LIMITS.request_bytes_max:
            raise ChannelFault(f"a frame of {size} bytes; {LIMITS.request_bytes_max} at most")
        body = _exactly(self._connection, size)
        mac = _exactly(self._connection, MAC_BYTES)
        self._received += 1
        if not hmac.compare_digest(mac, _mac(self._receiving, self._received, body)):
            raise ChannelFault(f"frame {self._received} is forged, replayed or out of order")
        self.heard_s = time.monotonic()
        return body

    def _send(self, body: bytes) -> None:
        self._sent += 1
        mac = _mac(self._sending, self._sent, body)
        self._connection.sendall(b"".join((HEAD.pack(len(body)), body, mac)))

    def close(self) -> None:
        """End the connection, also under a thread that sends or receives."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def open_channel(connection: socket.socket, key: bytes, rank: int) -> Channel:
    """The follower's end. Raises ChannelFault, EOFError, OSError within the handshake's time."""
    with _in_time(connection):
        magic, theirs = HELLO.unpack(_exactly(connection, HELLO.size))
        if magic != MAGIC:
            raise ChannelFault("it speaks another protocol")
        ours = os.urandom(32)
        proof = _proof(key, b"follower", theirs, ours, rank)
        connection.sendall(ANSWER.pack(MAGIC, ours, rank, proof))
        told = _exactly(connection, PROOF_BYTES)
        if not hmac.compare_digest(told, _proof(key, b"leader", theirs, ours, rank)):
            raise ChannelFault("it does not hold the same key")
    return Channel(
        connection,
        _proof(key, b"upward", theirs, ours, rank),
        _proof(key, b"downward", theirs, ours, rank),
    )


def accept_channel(connection: socket.socket, key: bytes) -> tuple[Channel, int]:
    """The leader's end, and the rank at the other one. Raises as open_channel does."""
    with _in_time(connection):
        ours = os.urandom(32)
        connection.sendall(HELLO.pack(MAGIC, ours))
        magic, theirs, rank, proof = ANSWER.unpack(_exactly(connection, ANSWER.size))
        if magic != MAGIC:
            raise ChannelFault("it speaks another protocol")
        if not hmac.compare_digest(proof, _proof(key, b"follower", ours, theirs, rank)):
            raise ChannelFault("it does not hold the same key")
        connection.sendall(_proof(key, b"leader", ours, theirs, rank))
    channel = Channel(
        connection,
        _proof(key, b"downward", ours, theirs, rank),
        _proof(key, b"upward", ours, theirs, rank),
    )
    return channel, rank


@contextlib.contextmanager
def _in_time(connection: socket.socket) -> Iterator[None]:
    """The handshake as a whole ends in time: a peer that trickles bytes is cut off."""

    def cut() -> None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(LIMITS.handshake_s, cut)
    timer.daemon = True
    timer.start()
    try:
        connection.settimeout(LIMITS.handshake_s)
        yield
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    finally:
        timer.cancel()


def _proof(key: bytes, role: bytes, leader: bytes, follower: bytes, rank: int) -> bytes:
    """What only a holder of the key can say of this connection in this role."""
    text = b"|".join((MAGIC, role, leader, follower, str(rank).encode()))
    return hmac.new(key, text, hashlib.sha256).digest()


def _mac(key: bytes, number: int, body: bytes) -> bytes:
    mac = hashlib.blake2b(NUMBER.pack(number), key=key, digest_size=MAC_BYTES)
    mac.update(body)
    return mac.digest()


def _exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes. Raises EOFError."""
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), PART_BYTES))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
