"""A relay to a server on this machine that adds latency, answers with 503 and cuts connections, by a seed."""

import random
import socket
import threading
import time
from contextlib import suppress

_LONGEST = 300  # seconds
_MOST = 20_000  # connections


class Relay:
    """Passes connections on to a port of this machine; use it as a context.

    Args:
        port: of the server.
        faults: share of the connections that fail: half with 503, half cut in the middle of the answer.
        latency: seconds before each answer.
        seed: of the faults.

    Attributes:
        port: to connect to.
        connections, failed: so far.
    """

    def __init__(self, port, faults=0.0, latency=0.0, seed=0):
        self.target, self.faults, self.latency = port, faults, latency
        self.connections = self.failed = 0
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._end = time.monotonic() + _LONGEST
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.2)
        self.port = self._server.getsockname()[1]
        self._closed = False
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *failure):
        self._closed = True
        self._thread.join()
        self._server.close()

    def _accept(self):
        while not self._closed and self.connections < _MOST and time.monotonic() < self._end:
            with suppress(TimeoutError):
                client, _ = self._server.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        """One request of a connection and its answer; the client is told to connect anew for the next."""
        with client, suppress(OSError):
            client.settimeout(30)
            request = b""
            while b"\r\n\r\n" not in request:
                part = client.recv(65536)
                if not part:
                    return
                request += part
            head, _, body = request.partition(b"\r\n\r\n")
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            with self._lock:
                fault = self._random.choice(["503", "cut"]) if self._random.random() < self.faults else None
                self.failed += fault is not None
            time.sleep(self.latency)
            if fault == "503":
                client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", self.target), timeout=30) as server:
                server.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
                answer = b""
                while part := server.recv(65536):
                    answer += part
            if fault == "cut":
                answer = answer[: len(answer) // 2]
            client.sendall(answer)
