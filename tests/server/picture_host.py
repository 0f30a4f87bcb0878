"""A host of pictures on loopback, which does what hosts do: also what they should not."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Host:
    """One answer a connection; `answers` are (bytes, whether they are all) by path.

    `heads` are what was asked. What is not all waits for the other side to leave.
    """

    def __init__(self, answers):
        self.answers, self.heads = answers, []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def url(self, path, name="pictures.test"):
        return f"http://{name}:{self.port}{path}"

    def close(self):
        self._listener.close()

    def _run(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection):
        head = connection.recv(65536)
        self.heads.append(head)
        body, is_whole = self.answers[head.split()[1].decode()]
        with suppress(OSError):  # cut off by whom it is sent to
            connection.sendall(body)
            if not is_whole:
                connection.recv(1)


def plain(body, status=b"200 OK", length=None, head=b""):
    told = len(body) if length is None else length
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n%s\r\n%s" % (status, told, head, body)
