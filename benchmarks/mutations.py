"""Mutated image files: each is read, or refused with a message of ours; no crash, no hang, no other exception.

``python benchmarks/mutations.py --count 1000`` reads so many of each format, in a process that is watched. Some have a
few bits flipped, some a part overwritten, cut out or repeated; of PNG files, half get right checksums again.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import random
import struct
import tempfile
import time
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from retune.errors import RetuneError
from retune.io import read, write

#: seconds after which a file counts as a hang
LIMIT = 30


def originals() -> dict[str, tuple[str, bytes]]:
    """A file of each format: its suffix and its content."""
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (24, 31), dtype=np.uint8), rng.integers(0, 65536, (24, 31, 3), dtype=np.uint16)
    made: dict[str, tuple[str, bytes]] = {"PNG 16": (".png", bytes(imagecodecs.png_encode(colour)))}
    for name, suffix, kind in (("PNG 8", ".png", "PNG"), ("JPEG", ".jpg", "JPEG")):
        out = io.BytesIO()
        Image.fromarray(grey).save(out, kind, dpi=(300, 300))
        made[name] = suffix, out.getvalue()
    told = {"axes": "ZYX", "PhysicalSizeX": 0.1, "PhysicalSizeXUnit": "µm"}
    stack = rng.integers(0, 65536, (2, 24, 31), dtype=np.uint16)
    for name, options in (
        ("TIFF", {"data": colour, "photometric": "rgb", "compression": "lzw", "predictor": True}),
        ("OME-TIFF", {"data": stack, "ome": True, "metadata": told, "photometric": "minisblack"}),
    ):
        out = io.BytesIO()
        tifffile.imwrite(out, resolution=(300, 300), **options)
        made[name] = ".tif", out.getvalue()
    out = io.BytesIO()
    np.save(out, colour)
    made["NPY"] = ".npy", out.getvalue()
    return made


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content with some of it changed; the first quarter, where headers are, more often."""
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        reach = len(found) if draw.random() < 0.5 else max(1, len(found) // 4)
        at, length = draw.randrange(reach), draw.choice((1, 2, 4, 16))
        kind = draw.randrange(5)
        if kind == 0:
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            found[at : at + length] = draw.randbytes(length)
        elif kind == 2:
            found[at : at + length] = b"\xff" * length
        elif kind == 3 and len(found) > 64:
            del found[at : at + length]
        else:
            found[at:at] = found[at : at + length]
    changed = bytes(found)
    return with_checksums(changed) if changed[:4] == b"\x89PNG" and draw.random() < 0.5 else changed


def with_checksums(content: bytes) -> bytes:
    """A PNG file whose checksums are right, whatever its chunks hold."""
    at, found = 8, bytearray(content)
    while at + 12 <= len(found):
        (length,) = struct.unpack(">I", found[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(found):
            break
        found[end : end + 4] = struct.pack(">I", zlib.crc32(bytes(found[at + 4 : end])))
        at = end + 4
    return bytes(found)


def serve(pipe, folder: str) -> None:
    """Read the files that the pipe names, and write what could be read."""
    while (path := pipe.recv()) is not None:
        try:
            images, layout = read(path, any_integers=True, finite=False)
            write(Path(folder) / f"out{Path(path).suffix}", images.nan_to_num(), layout)
            pipe.send("read and written")
        except RetuneError:
            pipe.send("refused")
        except MemoryError:
            pipe.send("EXCEPTION: MemoryError")
        except Exception as error:
            pipe.send(f"EXCEPTION: {type(error).__name__}: {error}")


def try_format(name: str, suffix: str, content: bytes, count: int, seed: int) -> dict[str, int]:
    """How often each outcome came; whatever should not be is printed, with the seed of the file."""
    outcomes: dict[str, int] = {}
    process, pipe = None, None
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            if process is None:
                pipe, theirs = multiprocessing.Pipe()
                process = multiprocessing.Process(target=serve, args=(theirs, folder))
                process.start()
                theirs.close()
            assert pipe is not None
            path = Path(folder) / f"in{suffix}"
            path.write_bytes(mutated(content, random.Random(f"{name} {seed} {i}")))
            pipe.send(str(path))
            try:
                outcome = pipe.recv() if pipe.poll(LIMIT) else "HANG"
            except EOFError:
                process.join()
                outcome = f"CRASH: exit status {process.exitcode}"
            if outcome.isupper() or outcome[:5] in ("HANG", "CRASH"):
                process.kill()
                process = None
            if outcome[0].isupper():
                print(f"  {name}, seed {seed}, file {i}: {outcome}", flush=True)
            kind = outcome.split(":")[0]
            outcomes[kind] = outcomes.get(kind, 0) + 1
        if process is not None and pipe is not None:
            pipe.send(None)
            process.join()
    return outcomes


def main(arguments: list[str] | None = None) -> int:
    """Try every format; the number of files that ended in something else than an image or a message."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="files of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", action="append", choices=list(originals()), help="one of them; all by default")
    given = parser.parse_args(arguments)
    wrong = 0
    for name, (suffix, content) in originals().items():
        if given.format and name not in given.format:
            continue
        start = time.perf_counter()
        outcomes = try_format(name, suffix, content, given.count, given.seed)
        wrong += sum(n for kind, n in outcomes.items() if kind[0].isupper())
        print(f"{name:<9} {outcomes} in {time.perf_counter() - start:.0f} s", flush=True)
    return wrong


if __name__ == "__main__":
    raise SystemExit(main() > 0)
