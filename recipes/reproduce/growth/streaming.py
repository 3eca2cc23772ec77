"""Measure a streamed growth: peak anonymous memory, and wall time against copying the same bytes.

    python recipes/reproduce/growth/streaming.py SOURCE WORK --hidden-size 1152 [--width clone] [--snr-db 10]

The copy reads the source's weights and writes as many bytes as the grown model has, to disk. `RssAnon` leaves out
mapped files, whose pages the kernel can drop.
"""

import argparse
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from hf_warmscale.checkpoints import open_checkpoint
from hf_warmscale.resize import grow_checkpoint

CHUNK = 1 << 24


class PeakAnonymous(threading.Thread):
    """Watch the anonymous memory of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes = self.peak = rss_anon()
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.002):
            self.peak = max(self.peak, rss_anon())


def rss_anon() -> int:
    """Return the anonymous resident memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def copy_bytes(source: Path, target: Path, count: int) -> float:
    """Read all weights of `source`, write `count` bytes to `target` and to disk; return the seconds."""
    started = time.monotonic()
    chunk = b""
    for path in source.glob("*.safetensors"):
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                chunk = piece if len(piece) == CHUNK else chunk or piece
    with target.open("wb") as file:
        for start in range(0, count, len(chunk)):
            file.write(chunk[: min(len(chunk), count - start)])
        file.flush()
        os.fsync(file.fileno())
    return time.monotonic() - started


def measure(source: Path, work: Path, **growth: Any) -> dict[str, Any]:
    """Grow `source` into `work / "grown"` and return what it cost, beside what copying costs in the same run."""
    target = work / "grown"
    shutil.rmtree(target, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    read = sum(len(path.read_bytes()) for path in source.glob("*.safetensors"))  # warm for both
    watch = PeakAnonymous()
    watch.start()
    started = time.monotonic()
    receipt = grow_checkpoint(source, target, **growth)
    seconds = time.monotonic() - started
    watch.stopped.set()
    grown = open_checkpoint(target)
    largest = max(spec.nbytes for spec in grown.specs.values())
    copied = copy_bytes(source, work / "copy.bin", grown.nbytes)
    (work / "copy.bin").unlink()
    return {
        "source_bytes": read,
        "target_bytes": grown.nbytes,
        "largest_tensor_bytes": largest,
        "peak_anonymous_above_start": watch.peak - watch.start_bytes,
        "allowed": 3 * largest + 200 * 1000 * 1000,
        "seconds": round(seconds, 2),
        "copy_seconds": round(copied, 2),
        "times_copy": round(seconds / copied, 2),
        "parameters": receipt.parameters,
    }


def main() -> None:
    """Parse the arguments, grow, measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--hidden-size", type=int)
    parser.add_argument("--intermediate-size", type=int)
    parser.add_argument("--num-attention-heads", type=int)
    parser.add_argument("--num-key-value-heads", type=int)
    parser.add_argument("--width", default="clone")
    parser.add_argument("--snr-db", type=lambda text: None if text == "none" else float(text), default=10.0)
    arguments = vars(parser.parse_args())
    print(json.dumps(measure(arguments.pop("source"), arguments.pop("work"), **arguments), indent=2))


if __name__ == "__main__":
    main()
