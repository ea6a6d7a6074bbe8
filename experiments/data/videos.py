"""Videos that anyone may have made: a file, read by PyAV, or a folder with a frame in each image."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.core import memory
from experiments.core.results import format_bytes
from experiments.data.image_files import open_image
from models.errors import CommandError
from models.io.untrusted import file_problem, parsing

MOST_FRAMES = 768
"""That are taken of a video, as by Qwen's own processors."""
_USUAL_RATE = 24.0  # where a file says none, as transformers has it


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames of a video at even distances.

    Attributes:
      frames: RGB, all of one size.
      total: how many the video has.
      rate: how many of those taken are a second; None where nobody says (a folder).
    """

    frames: list[Image.Image]
    total: int
    rate: float | None = None


def open_video(path: Path, count: int) -> Clip:
    """Take `count` frames of a video, or all where it has fewer: the i-th is number floor(i total / count).

    Raises:
      CommandError: there is no such file or folder, it holds no video that can be read whole, a single frame, frames of
        several sizes or more than memory holds; or it is a file, and PyAV is not installed.
    """
    if path.is_dir():
        return _of_folder(path, count)
    if problem := file_problem(path):
        raise CommandError(f"{path} {problem}")
    return _of_file(path, count)


def _of_folder(path: Path, count: int) -> Clip:
    Image.init()
    files = [file for file in path.iterdir() if file.suffix.lower() in Image.EXTENSION]
    files.sort(key=lambda file: [part.zfill(20) for part in re.findall(r"\d+|\D", file.name)])  # 9 before 10
    if not files:
        raise CommandError(f"{path} holds no images; expected the frames of a video, in the order of their names")
    wanted = _places(path, len(files), count)
    return Clip(_alike(path, (open_image(files[place]) for place in wanted), len(wanted)), len(files))


def _of_file(path: Path, count: int) -> Clip:
    try:
        import av
    except ImportError:
        raise CommandError(
            f"{path}: a video in a file needs PyAV, which is not installed (pip install 'av>=14'); or pass a folder "
            "with its frames as images"
        ) from None
    with parsing(path, CommandError, "cannot be read as a video"), path.open("rb") as file:

        def opened() -> Any:
            file.seek(0)
            # Nothing but this file is read, whatever a playlist in it says.
            return av.open(file, options={"protocol_whitelist": "none"})

        with opened() as container:
            if not container.streams.video:
                raise CommandError(f"{path} holds no video that can be read")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or _USUAL_RATE)
            total = sum(packet.size > 0 for packet in container.demux(stream))
        wanted = _places(path, total, count)
        with opened() as container:
            found = _at(path, container.decode(container.streams.video[0]), wanted)
            frames = _alike(path, (frame.to_image() for frame in found), len(wanted))
    return Clip(frames, total, len(frames) / total * rate)


def _at(path: Path, frames: Iterable[Any], wanted: list[int]) -> Iterator[Any]:
    """The frames at ascending places."""
    left = iter(wanted)
    place = next(left, None)
    for number, frame in enumerate(frames):
        if number == place:
            yield frame
            place = next(left, None)
        if place is None:
            return
    raise CommandError(f"{path} ends before frame {place}, which it should have; it may be cut off")


def _places(path: Path, total: int, count: int) -> list[int]:
    if total < 2:
        raise CommandError(f"{path} has {total or 'no'} frame{'s' * (not total)}; ask about a single image by --image")
    count = min(count, total)
    return [number * total // count for number in range(count)]


def _alike(path: Path, frames: Iterable[Image.Image], count: int) -> list[Image.Image]:
    """All frames, which must be of one size and fit into memory."""
    found = list[Image.Image]()
    for frame in frames:
        found.append(frame)
        (width, height), free = found[0].size, memory.available()
        if len(found) == 1 and free is not None and 3 * width * height * count > free:
            raise CommandError(
                f"{path}: {count} frames of {width} x {height} pixels take {format_bytes(3 * width * height * count)}, "
                f"and {format_bytes(free)} of memory are free; ask for fewer by --frames"
            )
        if frame.size != found[0].size:
            raise CommandError(
                f"{path} has frames of {width} x {height} and of {frame.width} x {frame.height} pixels; expected "
                "one size"
            )
    return found
