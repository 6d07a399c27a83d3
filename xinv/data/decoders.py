"""Processes that decode: no interpreter lock between them and the training, and no pickle, no port and no /dev/shm.

A decoder is `python -m xinv.data.decoders` at the other end of a socket pair. It answers a request with a piece of
anonymous memory, whose descriptor goes over the socket: both sides map the same pages, and they are free when the last
array on them is. Containers often have a /dev/shm of 64 MiB; this memory does not count there.

However this process ends, the sockets close, and the decoders end with them. However a decoder ends, its socket closes,
and whoever waits for it gets a WorkError. Ctrl-C does not reach them: they have a session of their own.
"""

import contextlib
import json
import mmap
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import weakref
from typing import Any

import numpy as np

from xinv.data.decoding import Request, arrays_in, empty_arrays, fill
from xinv.errors import InputError, WorkError

LENGTH = struct.Struct("!Q")


class Decoders:
    """`count` processes that decode requests, one each at a time; 0: the calling thread does it.

    Processes start when they are needed first, and end with this object, with `close`, or with this process. Any number
    of threads may ask at once: those that find no process free wait for one.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._all: list[_Decoder] = []
        self._free: queue.SimpleQueue[_Decoder | None] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(None)
        self.close = weakref.finalize(self, _end, self._all)

    def decode(self, request: Request) -> dict[str, np.ndarray]:
        """One array a field, (rows, ...), as `decoding.fill` fills them.

        Raises:
            InputError, OSError: as `fill`. WorkError: the process died.
        """
        if not self.count:
            out = empty_arrays(request)
            fill(request, out)
            return out
        decoder, kept = self._free.get(), None
        try:
            if decoder is None:
                decoder = _Decoder()
                self._all.append(decoder)
            answer = decoder.ask(request)
            kept = decoder
            return answer
        except (InputError, OSError):
            kept = decoder  # it lives, and has said why it could not
            raise
        finally:
            self._free.put(kept)  # None, where it died: another one is started in its place


class _Decoder:
    """One process and this side's end of its socket."""

    def __init__(self) -> None:
        self.link, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "xinv.data.decoders", str(number)],
                stdin=subprocess.DEVNULL,
                pass_fds=[number],
                start_new_session=True,
                # What this process can import, however it came to: Ray gives its workers paths in sys.path alone.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )

    def ask(self, request: Request) -> dict[str, np.ndarray]:
        try:
            _send(self.link, request.to_json())
            text = _receive(self.link)
            if text is None:
                raise EOFError
            answer = json.loads(text)
            if answer is None:
                _, descriptors, _, _ = socket.recv_fds(self.link, 1, 1)
                if not descriptors:
                    raise EOFError
                return _mapped(descriptors[0], request)
        except (EOFError, ConnectionError):
            raise self._lost() from None
        if answer["error"] == "OSError":
            raise OSError(answer["errno"], answer["message"], answer["filename"])
        raise InputError(answer["message"])

    def _lost(self) -> WorkError:
        self.end()
        code = self.process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return WorkError(
            f"A process that decodes images (pid {self.process.pid}) was {how} in mid-work. Is the machine short of "
            "memory? Lower batch_size or decoders of that training. The same command continues."
        )

    def end(self) -> None:
        """End the process, whatever it is doing: it keeps nothing."""
        with contextlib.suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)
        self.link.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)  # a process that was killed shows by what, one that lives sees the socket close
        self.process.kill()
        self.process.wait()


def _end(decoders: list[_Decoder]) -> None:
    for decoder in decoders:
        decoder.process.kill()
    for decoder in decoders:
        decoder.end()


def _mapped(descriptor: int, request: Request) -> dict[str, np.ndarray]:
    size, _ = request.layout()
    try:
        return arrays_in(mmap.mmap(descriptor, size), request)
    finally:
        os.close(descriptor)  # the mapping stays


def _send(link: socket.socket, content: bytes) -> None:
    link.sendall(LENGTH.pack(len(content)) + content)


def _receive(link: socket.socket) -> bytes | None:
    """One message; None where the other side is gone."""
    head = _exactly(link, LENGTH.size)
    return None if head is None else _exactly(link, LENGTH.unpack(head)[0])


def _exactly(link: socket.socket, size: int) -> bytes | None:
    content = bytearray()
    while len(content) < size:
        piece = link.recv(size - len(content))
        if not piece:
            return None
        content += piece
    return bytes(content)


def _answered(request: Request) -> tuple[dict[str, Any] | None, int | None]:
    """(None, descriptor of the memory that holds the answer), or (what went wrong, None)."""
    size, _ = request.layout()
    descriptor = _memory(size)
    try:
        fill(request, arrays_in(mmap.mmap(descriptor, size), request))
        return None, descriptor
    except InputError as error:
        failure: dict[str, Any] = {"error": "InputError", "message": str(error)}
    except OSError as error:
        message = error.strerror or str(error)
        failure = {"error": "OSError", "errno": error.errno, "message": message, "filename": error.filename}
    os.close(descriptor)
    return failure, None


def _memory(size: int) -> int:
    """A descriptor of `size` bytes that have no name."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("xinv-batch", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def serve(link: socket.socket) -> None:
    """Answer requests until the other side is gone."""
    with contextlib.suppress(ConnectionError):
        while (text := _receive(link)) is not None:
            failure, descriptor = _answered(Request.from_json(text))
            _send(link, json.dumps(failure).encode())
            if descriptor is not None:
                socket.send_fds(link, [b"\0"], [descriptor])
                os.close(descriptor)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as this_side:
        serve(this_side)
