"""Pictures of a source as rows ``[N, C, H, W]``: encoded images, and frames of a video, decoded as far as they are asked for."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store.errors import InvalidInput

from . import arrow
from .source import BadRow

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for so many channels

#: Pillow's names for pictures of one channel that is no byte (depth in millimetres or metres), and their dtypes.
DEEP = {"I;16": np.uint16, "I;16L": np.uint16, "I;16B": np.uint16, "I": np.int32, "F": np.float32}

#: What can be turned into a mode without loss of a value: palettes, black and white, grey as three equal channels.
EXACT = {"L": ("1", "L"), "RGB": ("P", "1", "L", "RGB"), "RGBA": ("P", "PA", "1", "L", "LA", "RGB", "RGBA")}


def picture_dtype(content: bytes, channels: int, file: str, key: str) -> np.dtype:
    """The dtype of an encoded picture: uint8, or what its single channel holds (16-bit depth); raises `BadRow` where it is none."""
    image = arrow.need("PIL.Image", file)
    try:
        with image.open(io.BytesIO(content)) as opened:
            return np.dtype(DEEP.get(opened.mode, np.uint8)) if channels == 1 else np.dtype(np.uint8)
    except (OSError, ValueError, SyntaxError, TypeError) as error:
        raise BadRow(f"{file}: {key}[0] is no image: {arrow.line(error)}", 0, hint="the file is damaged; copy it again") from None


class EncodedImages:
    """Images that are kept encoded (PNG, JPEG), as the data of a column.

    Args:
        encoded: gives the bytes of rows ``start:stop``.
        shape: ``(N, C, H, W)``; an image of another size is an error.
        file, key: how messages call them.
        last: the shape is ``(N, H, W, C)`` or ``(N, H, W)``, and so are the rows.
        dtype: what the pictures hold (`picture_dtype`). One that holds something else, or that would lose a value, is an error.
    """

    def __init__(
        self, encoded: Callable[[int, int], list[bytes]], shape: tuple[int, ...], file: str, key: str, *, last: bool = False,
        dtype: Any = np.uint8,
    ) -> None:  # fmt: skip
        self._encoded, self.shape, self._file, self._key, self._last = encoded, shape, file, key, last
        self.dtype = np.dtype(dtype)

    def __getitem__(self, rows: slice) -> np.ndarray:
        image = arrow.need("PIL.Image", self._file)
        channels, height, width = ((*self.shape[3:], 1)[0], *self.shape[1:3]) if self._last else self.shape[1:]
        made = np.empty((rows.stop - rows.start, *self.shape[1:]), self.dtype)
        for place, content in enumerate(self._encoded(rows.start, rows.stop)):
            row = rows.start + place
            try:
                with image.open(io.BytesIO(content)) as opened:
                    if opened.size != (width, height):  # known before anything is decoded
                        raise BadRow(f"{self._file}: {self._key}[{row}] is an image of {opened.size[1]}x{opened.size[0]}", row,
                                     hint=f"all images need the declared size, {height}x{width}")  # fmt: skip
                    pixels = self._pixels(opened, channels, row)
            except (OSError, ValueError, SyntaxError, TypeError) as error:
                raise BadRow(f"{self._file}: {self._key}[{row}] is no image: {arrow.line(error)}", row,
                             hint="the file is damaged; copy it again") from None  # fmt: skip
            pixels = pixels.reshape(height, width, channels)
            made[place] = pixels.reshape(self.shape[1:]) if self._last else np.moveaxis(pixels, -1, 0)
        return made

    def _pixels(self, opened: Any, channels: int, row: int) -> np.ndarray:
        """The pixels of a picture, as they are."""
        mode = MODES[channels]
        if self.dtype == np.uint8 and opened.mode in EXACT[mode] and not ("transparency" in opened.info and mode != "RGBA"):
            return np.asarray(opened.convert(mode))
        if channels == 1 and opened.mode in DEEP and DEEP[opened.mode] == self.dtype:
            return np.asarray(opened, self.dtype)
        raise BadRow(
            f"{self._file}: {self._key}[{row}] is a picture of the mode {opened.mode}: {channels} channels of {self.dtype} do not hold it",
            row, hint="all pictures of a field need one number of channels and one depth: declare those that they have",
        )  # fmt: skip


class VideoFrames:
    """Frames of a video from a point of time on, as the data of a column. Read in rising order; a step back opens the video anew.

    Args:
        path: the video.
        shape: ``(N, C, H, W)`` with C = 3; frames of another size are an error.
        start: the time of the first frame in seconds; frame i stands at ``start + i / fps``.
        file, key: how messages call them.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path, shape: tuple[int, int, int, int], start: float, fps: float, file: str, key: str) -> None:
        self._path, self.shape, self._start, self._fps, self._file, self._key = path, shape, start, fps, file, key
        self._container: Any = None
        self._frames: Iterator[Any] = iter(())
        self._next = 0

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def __getitem__(self, rows: slice) -> np.ndarray:
        av = arrow.need("av", self._file)
        _, _, height, width = self.shape
        made = np.empty((rows.stop - rows.start, *self.shape[1:]), np.uint8)
        try:
            if self._container is None or rows.start < self._next:
                self._open(av)
            for row in range(self._next, rows.stop):
                frame = self._at(row)
                self._next = row + 1
                if row < rows.start:
                    continue
                if (frame.height, frame.width) != (height, width):
                    raise BadRow(f"{self._file}: {self._key}[{row}] is a frame of {frame.height}x{frame.width}", row,
                                 hint=f"all frames need the declared size, {height}x{width}")  # fmt: skip
                made[row - rows.start] = np.moveaxis(frame.to_ndarray(format="rgb24"), -1, 0)
        except (OSError, ValueError, av.FFmpegError) as error:
            self.close()
            raise InvalidInput(f"{self._file}: {self._key} cannot be decoded: {arrow.line(error)}",
                               hint="the video is damaged or cut short; copy it again") from None  # fmt: skip
        return made

    def _open(self, av: Any) -> None:
        self.close()
        self._container = av.open(str(self._path))
        if not self._container.streams.video:
            raise ValueError("it holds no video")
        stream = self._container.streams.video[0]
        self._container.seek(max(0, int((self._start - 0.5 / self._fps) / stream.time_base)), stream=stream)
        self._frames, self._next = self._container.decode(stream), 0

    def _at(self, row: int) -> Any:
        """The frame of a row: the first that stands at its time or behind it; none may be missing."""
        due = self._start + row / self._fps
        for frame in self._frames:
            if frame.time is None or frame.time < due - 0.5 / self._fps:
                continue
            if frame.time < due + 0.5 / self._fps:
                return frame
            break
        raise BadRow(f"{self._file}: {self._key} has no frame at {due:.3f} s", row, hint="the video is cut short; copy it again")
