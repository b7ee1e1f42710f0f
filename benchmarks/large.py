#!/usr/bin/env python3
"""Store a multi-frame instance of 1 GB and read one frame of it: memory of gateway and blob, and the times.

    python benchmarks/large.py [--megabytes 1000]

Prints the peak of RssAnon (memory of its own, no mapped files) of each process, sampled every 100 ms while the instance is stored
and while one frame is read. Ends with 1 when gateway or blob pass 150 MB.
"""

import argparse
import hashlib
import http.client
import struct
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from run import gantry

LIMIT_MB = 150
ROWS = COLUMNS = 512
FRAME_BYTES = ROWS * COLUMNS * 2


def head(uids, frames):
    """Part 10 head of a multi-frame grey instance (Explicit VR LE), up to and with the header of Pixel Data."""
    def element(group, number, vr, value):
        value += b"" if len(value) % 2 == 0 else (b"\0" if vr == "UI" else b" ")
        return struct.pack("<HH2sH", group, number, vr.encode(), len(value)) + value

    def short(group, number, value):
        return element(group, number, "US", struct.pack("<H", value))
    study, series, sop = (uid.encode() for uid in uids)
    sop_class = b"1.2.840.10008.5.1.4.1.1.7.3"
    meta = element(2, 2, "UI", sop_class) + element(2, 3, "UI", sop) + element(2, 0x10, "UI", b"1.2.840.10008.1.2.1")
    data = element(8, 0x16, "UI", sop_class) + element(8, 0x18, "UI", sop) + element(8, 0x60, "CS", b"OT")
    data += element(0x10, 0x20, "LO", b"LARGE") + element(0x20, 0xD, "UI", study) + element(0x20, 0xE, "UI", series)
    data += short(0x28, 2, 1) + element(0x28, 4, "CS", b"MONOCHROME2") + element(0x28, 8, "IS", str(frames).encode())
    data += short(0x28, 0x10, ROWS) + short(0x28, 0x11, COLUMNS) + short(0x28, 0x100, 16) + short(0x28, 0x101, 16) + short(0x28, 0x102, 15) + short(0x28, 0x103, 0)
    data += struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, frames * FRAME_BYTES)
    return b"\0" * 128 + b"DICM" + element(2, 0, "UL", struct.pack("<I", len(meta))) + meta + data


def frame(number):
    """The bytes of one frame: a block of noise that its number begins."""
    return struct.pack("<I", number) + hashlib.shake_128(struct.pack("<I", number)).digest(4092) + bytes(FRAME_BYTES - 4096)


class Watch(threading.Thread):
    """Samples RssAnon of the processes every 100 ms, and at the end."""

    def __init__(self, pids):
        super().__init__(daemon=True)
        self.pids, self.peak, self.done = pids, dict.fromkeys(pids, 0), threading.Event()
        self.start()

    def run(self):
        is_last = False
        while not is_last:
            is_last = self.done.wait(0.1)
            for name, pid in self.pids.items():
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("RssAnon:"):
                        self.peak[name] = max(self.peak[name], int(line.split()[1]) / 1024)

    def stop(self):
        self.done.set()
        self.join()
        return {name: round(mb) for name, mb in self.peak.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--megabytes", type=int, default=1000)
    args = p.parse_args()
    frames = args.megabytes * 1_000_000 // FRAME_BYTES
    uids = [f"2.25.{uuid.uuid4().int}" for _ in range(3)]
    with tempfile.TemporaryDirectory(prefix="gantry-large-") as work, gantry(Path(work)) as (base, _, _):
        watched = {path.stem: int(path.read_text()) for path in Path(work, "gantry", "run").glob("*.pid") if path.stem != "up"}
        url = urlsplit(base)
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=300)

        def body():
            yield b"--large\r\nContent-Type: application/dicom\r\n\r\n" + head(uids, frames)
            for number in range(1, frames + 1):
                yield frame(number)
            yield b"\r\n--large--\r\n"
        watch, begin = Watch(watched), time.perf_counter()
        connection.request("POST", url.path + "/studies", body(), {"Content-Type": 'multipart/related; type="application/dicom"; boundary=large', "Accept": "application/dicom+json"}, encode_chunked=True)
        answer = connection.getresponse()
        text, took = answer.read(), time.perf_counter() - begin
        storing = watch.stop()
        if answer.status != 200:
            sys.exit(f"{answer.status} {text[:300]!r}")
        print(f"stored {frames} frames, {frames * FRAME_BYTES / 1e6:.0f} MB in {took:.1f} s ({frames * FRAME_BYTES / 1e6 / took:.0f} MB/s)")
        print(f"RssAnon peak while storing, MB: {storing}")
        watch, wanted, begin = Watch(watched), frames - 1, time.perf_counter()
        connection.request("GET", f"{url.path}/studies/{uids[0]}/series/{uids[1]}/instances/{uids[2]}/frames/{wanted}", headers={"Accept": "application/octet-stream"})
        answer = connection.getresponse()
        got, took = answer.read(), time.perf_counter() - begin
        reading = watch.stop()
        right = answer.status == 200 and got == frame(wanted)
        print(f"frame {wanted}: {answer.status}, {len(got)} bytes, {'right' if right else 'WRONG'}, {took * 1e3:.1f} ms; RssAnon peak, MB: {reading}")
        over = [f"{name} {peak[name]} MB" for peak in (storing, reading) for name in peak if name.partition("-")[0] in ("gateway", "blob") and peak[name] >= LIMIT_MB]
        sys.exit(f"over {LIMIT_MB} MB: {', '.join(over)}" if over else 0 if right else 1)


if __name__ == "__main__":
    main()
