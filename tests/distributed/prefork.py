"""Workers that are forks of a process with all imports done: each saves the seconds that its imports would take.

`Forked` stands for one as `subprocess.Popen` would. Needs Linux, and jobs whose libraries read nothing from the
environment when they are imported.
"""

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

_LONGEST_MESSAGE = 1 << 18  # bytes


class Forked:
    """A worker with a job.

    Args:
        job: of `worker.py`.
        env: its environment.
    """

    def __init__(self, job, env):
        read, write = os.pipe()
        self.pid = _ask({"job": job, "env": env}, [write])["pid"]
        os.close(write)
        self.stdout, self.returncode = read, None

    def poll(self):
        """The exit code, minus the number of the signal that ended the process; None while it runs."""
        if self.returncode is None:
            self.returncode = _ask({"pid": self.pid})["code"]
        return self.returncode

    def send_signal(self, number):
        """Send a signal to the process if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        """Ask the process to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self):
        """End the process."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=None):
        """What the process and its children have written until all of them have ended, and None."""
        deadline = time.monotonic() + (timeout or 1e9)
        chunks = []
        while self.stdout is not None:
            if not select.select([self.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise subprocess.TimeoutExpired("worker", timeout, b"".join(chunks))
            chunks.append(os.read(self.stdout, 1 << 16))
            if not chunks[-1]:
                os.close(self.stdout)
                self.stdout = None
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.01)
        return b"".join(chunks).decode(errors="replace"), None


@functools.cache
def _server():
    """The connection to this process's server, which ends when the connection does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=env)
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def _ask(request, descriptors=()):
    socket.send_fds(_server(), [json.dumps(request).encode()], descriptors)
    answer = _server().recv(_LONGEST_MESSAGE)
    assert answer, "the server of workers has ended"
    return json.loads(answer)


def _serve(connection):
    """Fork a process for each job; returns in it, with the job, and never in the server."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, _LONGEST_MESSAGE, 1)
        if not data:
            os._exit(0)
        request = json.loads(data)
        if "job" in request:
            pid = os.fork()
            if pid == 0:
                connection.close()
                for standard in (1, 2):
                    os.dup2(descriptors[0], standard)
                os.close(descriptors[0])
                os.environ.clear()
                os.environ.update(request["env"])
                return request["job"]
            os.close(descriptors[0])
            answer = {"pid": pid}
        else:
            ended, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if ended else None}
        connection.send(json.dumps(answer).encode())


if __name__ == "__main__":
    import events  # noqa: F401
    import worker

    import rfdetr_hf

    for name in rfdetr_hf.__all__:
        with contextlib.suppress(ImportError):  # of extras
            getattr(rfdetr_hf, name)
    worker.main(_serve(socket.socket(fileno=int(sys.argv[1]))))
