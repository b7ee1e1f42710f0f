"""A worker process of the pool: receives jobs on a socket, one after another, and sends the result of each.

Command: `python -m gantry_renderer.workers.worker SOCKET MEMORY`; both arguments are file descriptors. The process imports the decoders but
no server. It reports that it is ready when the decoders are loaded, and ends when the socket is closed. A bit stream that crashes a decoder
ends only this process.
"""

import logging
import mmap
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from gantry_renderer.codecs import coding
from gantry_renderer.codecs.table import REWRITES
from gantry_renderer.file import head
from gantry_renderer.picture import images
from gantry_renderer.picture.attributes import FrameAttributes, Window, read_attributes
from gantry_renderer.picture.draw import Presentation, draw, render
from gantry_renderer.picture.image_files import decode_image
from gantry_renderer.stored.mapped import FrameFiles, StoredFrame
from gantry_renderer.workers import exchange
from gantry_runtime import logs
from gantry_runtime.call_context import CURRENT
from gantry_standard import errors
from gantry_standard.dicom.scanned import PixelDescription
from gantry_standard.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN

log = logging.getLogger(__name__)


def transcode(transfer_syntax_uid: str, data: bytes, description: PixelDescription, target_uid: str) -> bytes:
    """Return one frame in another transfer syntax."""
    if (transfer_syntax_uid, target_uid) in REWRITES:
        return coding.rewrite(transfer_syntax_uid, data, target_uid)
    samples = coding.decode(transfer_syntax_uid, data, description, keeps_bits=True)
    return coding.encode(target_uid, samples, coding.decoded_description(transfer_syntax_uid, description))


JOBS: dict[str, Callable[..., Any]] = {
    "render": render,
    "transcode": transcode,
    "attributes": read_attributes,
    "patch_head": head.patch,
    "decode_image": decode_image,
}


def _warm() -> None:
    coding.warm()
    images.warm()
    description = PixelDescription(8, 8, 1, "MONOCHROME2", 0, 16, 12, 11, 0, "7FE00010", "OW")
    frame = np.arange(64, dtype="<u2").tobytes()
    draw(EXPLICIT_VR_LITTLE_ENDIAN, frame, description, FrameAttributes(), Window(32, 64), None)
    render(EXPLICIT_VR_LITTLE_ENDIAN, frame, description, FrameAttributes(), Presentation("image/jpeg"))


def serve(connection: socket.socket, shared: mmap.mmap) -> None:
    """Run jobs until the other end closes the connection."""
    _warm()
    files = FrameFiles()
    # The connection closes however the renderer ends
    with suppress(EOFError, ConnectionResetError, BrokenPipeError):
        connection.sendall(exchange.packed(None))
        while True:
            job, arguments, request = exchange.receive(connection)
            CURRENT.set(request)
            outcome, value = _answer(files, job, arguments)
            if isinstance(value, bytes) and exchange.SHARED_FROM_BYTES <= len(value) <= len(shared):
                shared[: len(value)] = value
                outcome, value = "shared", len(value)
            connection.sendall(exchange.packed((outcome, value)))


def _answer(files: FrameFiles, job: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """Run a job; return ("result", its result) or ("error", a GantryError or the traceback of another exception)."""
    try:
        given = [files.load(argument) if isinstance(argument, StoredFrame) else argument for argument in arguments]
        return "result", JOBS[job](*given)
    except errors.GantryError as error:
        return "error", type(error)(error.message)
    except Exception:
        log.exception("job failed", extra={"job": job})
        return "error", traceback.format_exc()


if __name__ == "__main__":
    # Ctrl-C signals every process of the terminal; only the renderer ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.configure("renderer", os.environ.get("GANTRY_LOG_LEVEL", "info"))
    serve(socket.socket(fileno=int(sys.argv[1])), exchange.mapped(int(sys.argv[2])))
