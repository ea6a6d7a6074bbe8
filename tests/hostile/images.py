"""Images: good ones of every format that Pillow both writes and reads, and mutations of them."""

import functools
import io
import random
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from experiments.data.image_files import formats, open_image
from tests.hostile.case import Case

MODES = ("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "LA", "F")


def _picture(mode: str) -> Image.Image:
    picture = Image.linear_gradient("L").resize((37, 29))
    picture = Image.merge("RGB", (picture, picture.rotate(90), picture.rotate(180)))
    return picture.convert("L").convert(mode) if mode in ("I;16", "F", "LA") else picture.convert(mode)


@functools.cache
def good() -> dict[str, bytes]:
    """Files by name."""
    found = {}
    Image.init()
    for name in sorted(set(formats()) & set(Image.SAVE)):
        for mode in MODES:
            for options in ({}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}):
                file = io.BytesIO()
                try:
                    with warnings.catch_warnings(action="ignore"):  # that a format will go
                        _picture(mode).save(file, format=name, **options)
                    open_image(file.getvalue())
                except Exception:  # this format has no such mode
                    continue
                found[f"{name}-{mode}{'-exif' * bool(options)}"] = file.getvalue()
    animated = io.BytesIO()
    _picture("P").save(
        animated, format="GIF", save_all=True, append_images=[_picture("L").convert("P")], transparency=0
    )
    transparent = io.BytesIO()
    _picture("P").save(transparent, format="PNG", transparency=bytes(range(256)))
    return found | {"GIF-animated": animated.getvalue(), "PNG-transparent": transparent.getvalue()}


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Flip, cut, repeat, insert, swap or overwrite with extreme numbers, mostly near the start."""
    found = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 4, 16))):
        end = len(found) if generator.random() < 0.4 else min(len(found), 200)
        at, how = generator.randrange(max(1, end)), generator.randrange(6)
        if how == 0 and found:
            found[at % len(found)] ^= 1 << generator.randrange(8)
        elif how == 1:
            del found[at : None if generator.random() < 0.3 else at + generator.randrange(1, 9)]
        elif how == 2:
            found[at:at] = found[at : at + generator.randrange(1, 40)]
        elif how == 3:
            found[at:at] = generator.randbytes(generator.randrange(1, 9))
        elif how == 4:
            found[at : at + 4] = generator.choice((b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
        else:
            found[at : at + 1] = bytes([generator.randrange(256)])
    return bytes(found)


def known() -> Iterator[Case]:
    """Every good file, and those of which it is known what must come of them."""
    for name, data in good().items():
        yield Case(f"image {name}", functools.partial(open_image, data, name), want="worked")
    for width, height in ((12_000, 12_000), (2**31 - 1, 2**31 - 1), (1, 60_000), (60_000, 1), (0, 5)):
        attempt = functools.partial(open_image, png(width, height), "claims.png")
        yield Case(f"image of {width} x {height}", attempt, want="refused", says="claims.png")
    for name in ("/dev/null", "/dev/zero", "/", "/nowhere/x.png", "/dev/null/x.png", "x" * 300, "a\0b"):
        yield Case(f"image {name[:20]!r}", functools.partial(open_image, Path(name)), want="refused")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    yield Case("image EPS", functools.partial(open_image, eps, "a.eps"), want="refused", says="unknown format")


def random_case(generator: random.Random, number: int) -> Case:
    """One mutation."""
    name = generator.choice(sorted(good()))
    data = mutate(good()[name], generator)
    return Case(f"image {number}, a mutation of {name}", functools.partial(open_image, data, "a.img"), says="a.img")
