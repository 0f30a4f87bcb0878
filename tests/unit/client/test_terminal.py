"""`ranvier chat` and `complete` as processes on a terminal, against a server of recorded bytes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

from tests.unit.client.fake import FakeServer, chunked, events

END = b"0\r\n\r\n"
WAIT_S = 20


def chat_pieces(*texts):
    values = [json.dumps({"choices": [{"delta": {"content": text}}]}) for text in texts]
    return events(*values)


def command(kind, server, *more):
    return [sys.executable, "-m", "ranvier.cli.main", kind, "--url", server.url + "/v1",
            "--model-name", "m", *more]  # fmt: skip


def sent(server, i):
    return json.loads(server.requests[i].split(b"\r\n\r\n", 1)[1])


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, words):
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.execvp(words[0], words)

    def expect(self, text):
        until = time.monotonic() + WAIT_S
        while text not in self.seen:
            assert time.monotonic() < until, f"{text!r} did not come: {self.seen!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 4096).decode()
        self.seen = self.seen.partition(text)[2]

    def type(self, text):
        os.write(self.fd, text.encode())

    def end(self):
        with contextlib.suppress(OSError):
            while os.read(self.fd, 4096):
                pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_quick_prints_the_answer_and_ends():
    with FakeServer(chunked(*chat_pieces("Hel", "lo"), *events("[DONE]")), END) as server:
        words = command("chat", server, "-q", "Hi", "--system-prompt", "Be kind", "--top-k", "5")
        done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert (done.returncode, done.stdout) == (0, "Hello\n")
        body = sent(server, 0)
    assert body["messages"] == [
        {"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"},
    ]  # fmt: skip
    assert (body["top_k"], body["stream"], "temperature" in body) == (5, True, False)


def test_complete_reads_prompts_from_a_pipe():
    with FakeServer(chunked(*events('{"choices":[{"text":"!"}]}', "[DONE]")), END) as server:
        done = subprocess.run(
            command("complete", server, "--max-tokens", "3"),
            input="one\n\ntwo\n", capture_output=True, text=True, timeout=WAIT_S, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "!\n!\n")
        assert [sent(server, i)["prompt"] for i in (0, 1)] == ["one", "two"]
        assert sent(server, 0)["max_tokens"] == 3


def test_ctrl_c_stops_the_answer_and_ctrl_d_ends_the_talk():
    slow = chunked(*chat_pieces("Once upon"))
    with FakeServer(slow, None) as server:
        terminal = Terminal(command("chat", server))
        terminal.expect("Ctrl-D ends.")
        terminal.expect("> ")
        terminal.type("tell\n")
        terminal.expect("Once upon")
        assert server.waiting.wait(WAIT_S)
        os.kill(terminal.pid, signal.SIGINT)
        terminal.expect("(cancelled)")
        terminal.expect("> ")
        assert server.left.wait(WAIT_S), "the connection stayed open: the server would go on"
        server.pieces = (chunked(*chat_pieces("Yes"), *events("[DONE]")), END)
        terminal.type("still there?\n")
        terminal.expect("Yes")
        terminal.expect("> ")
        terminal.type("\x04")
        assert terminal.end() == 0
        roles = [(m["role"], m["content"]) for m in sent(server, 1)["messages"]]
    assert roles == [("user", "tell"), ("assistant", "Once upon"), ("user", "still there?")]


def test_an_error_of_one_answer_does_not_end_the_talk():
    refusal = b'HTTP/1.1 400 X\r\nContent-Length: 31\r\n\r\n{"error":{"message":"too long"}}'
    with FakeServer(refusal.replace(b"31", b"32")) as server:
        words = command("chat", server)
        done = subprocess.run(
            words, input="a\nb\n", capture_output=True, text=True, timeout=WAIT_S, check=False
        )
        assert done.returncode == 0
        assert done.stderr.count("400: too long") == 2
        assert len(sent(server, 1)["messages"]) == 1


def test_no_server_is_an_error_of_its_own():
    with FakeServer() as server:
        words = command("chat", server, "-q", "x")
    done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 6
    assert "No server answers" in done.stderr and "Traceback" not in done.stderr
