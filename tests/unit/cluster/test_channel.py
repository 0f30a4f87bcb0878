"""The channel takes what its peer sent and nothing else; anything else ends the connection."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest

from ranvier.cluster import channel as module
from ranvier.cluster.adapter import PART_BYTES, Assembly, parts
from ranvier.cluster.channel import HEAD, ChannelFault, accept_channel, open_channel
from ranvier.cluster.key import file_key, local_key, text_key
from ranvier.cluster.message import (
    Beat,
    Dispatch,
    Facts,
    MessageFault,
    decode,
    encode,
    follower_decoder,
    leader_decoder,
)
from ranvier.core.adapter import AdapterWeights
from ranvier.core.errors import ConfigError
from ranvier.core.limits import LIMITS
from ranvier.core.program import ProgramShape
from ranvier.core.step import Chunk, LogitEdits, Sample, StepPlan

KEY = b"k" * 32


class Wire:
    """A socket that remembers what was sent, and can send anything."""

    def __init__(self, connection):
        self.connection, self.sent = connection, []

    def sendall(self, data):
        self.sent.append(bytes(data))
        self.connection.sendall(data)

    def __getattr__(self, name):
        return getattr(self.connection, name)


def pair(key=KEY, other=KEY, rank=1):
    """(leader's channel, follower's channel, follower's wire) after the handshake."""
    server = socket.create_server(("127.0.0.1", 0))
    near = Wire(socket.create_connection(server.getsockname()))
    far, _ = server.accept()
    server.close()
    found = []

    def answer():
        try:
            found.append(open_channel(near, other, rank))
        except (ChannelFault, EOFError) as error:
            found.append(error)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        leader, told = accept_channel(far, key)
        assert told == rank
    except ChannelFault as fault:
        far.close()
        leader = fault
    thread.join(10)
    return leader, found[0], near


def test_frames_arrive_in_order_both_ways():
    leader, follower, _ = pair()
    for i in range(5):
        follower.send(b"up%d" % i)
        leader.send(b"down%d" % i * 1000)
    assert [leader.receive() for _ in range(5)] == [b"up%d" % i for i in range(5)]
    assert [follower.receive() for _ in range(5)] == [b"down%d" % i * 1000 for i in range(5)]
    follower.close()
    with pytest.raises(EOFError):
        leader.receive()


def test_another_key_is_refused_at_both_ends():
    leader, follower, _ = pair(other=b"x" * 32)
    assert isinstance(leader, ChannelFault) and "same key" in str(leader)
    assert isinstance(follower, EOFError)


def _frames(near):
    return near.sent[1:]  # the first is the handshake's answer


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda frames: frames[0], "replayed"),
        (lambda frames: frames[1][:-1] + bytes([frames[1][-1] ^ 1]), "forged"),
        (lambda frames: frames[1][:5] + b"\xff" + frames[1][6:], "forged"),
        (lambda frames: HEAD.pack(3) + b"abc" + bytes(16), "forged"),
        (lambda frames: HEAD.pack(LIMITS.request_bytes_max + 1), "bytes"),
        (lambda frames: HEAD.pack(2**32 - 1), "bytes"),
    ],
    ids=["replay", "mac", "body", "made up", "oversized", "4 GiB"],
)
def test_what_the_peer_did_not_send_now_is_refused(bad, says):
    leader, follower, near = pair()
    follower.send(b"first")
    follower.send(b"second one")
    assert [leader.receive(), leader.receive()] == [b"first", b"second one"]
    near.connection.sendall(bad(_frames(near)))
    with pytest.raises(ChannelFault, match=says):
        leader.receive()


def test_a_frame_sent_back_to_its_sender_is_refused():
    leader, follower, near = pair()
    leader.send(b"x")
    follower.receive()
    # The same bytes under the other direction's key are no frame of it.
    mac = module._mac(leader._sending, 1, b"x")
    near.connection.sendall(HEAD.pack(1) + b"x" + mac)
    with pytest.raises(ChannelFault, match="forged"):
        leader.receive()


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n" * 9, bytes(200)])
def test_a_stranger_is_refused_within_the_handshakes_time(monkeypatch, data):
    monkeypatch.setattr(module, "LIMITS", type("Short", (), {"handshake_s": 0.2}))
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    with pytest.raises((ChannelFault, EOFError, OSError)):
        accept_channel(ours, KEY)


def test_a_replayed_handshake_is_refused():
    """What one join looked like on the wire opens no second connection: the challenge differs."""
    _, _, near = pair()
    ours, theirs = socket.socketpair()
    theirs.sendall(near.sent[0])
    with pytest.raises(ChannelFault, match="same key"):
        accept_channel(ours, KEY)


def plan():
    edits = LogitEdits(
        np.array([1, 2], np.int32), np.array([0, 1], np.int32), np.array([True, False]),
        np.array([0.5, -1], np.float32), allowed=np.array([7], np.uint32),
    )  # fmt: skip
    chunk = Chunk(4, [1, 2], [3, 4], from_previous=2)
    return StepPlan(ProgramShape("step", 8, 8), [chunk], [Sample(0, 1, edits=edits, uniform=0.25)])


def test_a_plan_arrives_as_it_was():
    sent = plan()
    found = decode(encode(Dispatch(3, sent)), follower_decoder())
    assert found.step == 3 and found.plan.program == sent.program
    assert found.plan.chunks == sent.chunks
    for name in ("token_ids", "counts", "seen", "bias", "allowed"):
        ours = getattr(sent.samples[0].edits, name)
        theirs = getattr(found.plan.samples[0].edits, name)
        assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist()


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x80", encode(Beat())[:-1], encode(Dispatch(1, plan())), b"\x91" * 100_000],
    ids=["empty", "no msgpack", "no type", "cut", "the other way's", "nested"],
)
def test_a_malformed_message_is_a_fault(body):
    with pytest.raises(MessageFault):
        decode(body, leader_decoder())


def test_a_message_beyond_the_limit_is_not_sent():
    with pytest.raises(MessageFault, match="at most"):
        encode(Facts("s", "h", {"x": "y" * LIMITS.request_bytes_max}))


def test_an_adapter_arrives_whole_in_bounded_parts():
    arrays = {
        "a": np.arange(3 * 2**20, dtype=np.float32).reshape(3, -1),
        "b": np.ones((2, 2), "i4"),
    }
    sent = AdapterWeights("d1", 8, arrays, np.arange(6, dtype=np.int32).reshape(1, 2, 3))
    assembly = Assembly()
    for part in parts(sent):
        assert len(part.data) <= PART_BYTES
        assembly.take(decode(encode(part), follower_decoder()))
    found = assembly.adapter()
    assert (found.digest, found.rank) == ("d1", 8)
    assert (found.table == sent.table).all()
    assert all((found.arrays[name] == arrays[name]).all() for name in arrays)


def test_keys_come_from_files_that_only_their_owner_reads(tmp_path):
    first = local_key(tmp_path)
    assert local_key(tmp_path) == first
    path = tmp_path / "cluster.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert file_key(path) == first
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="every user"):
        file_key(path)
    with pytest.raises(ConfigError, match="at least 32"):
        text_key("short", "RANVIER_CLUSTER_KEY")
    with pytest.raises(ConfigError, match="No such file"):
        file_key(tmp_path / "none")
