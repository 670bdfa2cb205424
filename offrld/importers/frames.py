"""Pictures of a source as rows ``[N, C, H, W]``: encoded images, and frames of a video, decoded as far as they are asked for."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from offrl_store.errors import InvalidInput

from . import arrow
from .source import BadRow

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for so many channels

#: What is decoded of a stranger's bytes; Pillow would also hand PostScript to a program.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")

#: What FFmpeg may take a stranger's video for; among the others are playlists, which open further files.
VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"


class EncodedImages:
    """Images that are kept encoded (PNG, JPEG), as the data of a column.

    Args:
        encoded: gives the bytes of rows ``start:stop``.
        shape: ``(N, C, H, W)``; an image of another size is an error.
        file, key: how messages call them.
        last: the shape is ``(N, H, W, C)`` or ``(N, H, W)``, and so are the rows.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, encoded: Callable[[int, int], list[bytes]], shape: tuple[int, ...], file: str, key: str, *, last: bool = False
    ) -> None:
        self._encoded, self.shape, self._file, self._key, self._last = encoded, shape, file, key, last

    def __getitem__(self, rows: slice) -> np.ndarray:
        image = arrow.need("PIL.Image", self._file)
        channels, height, width = ((*self.shape[3:], 1)[0], *self.shape[1:3]) if self._last else self.shape[1:]
        made = np.empty((rows.stop - rows.start, *self.shape[1:]), np.uint8)
        for place, content in enumerate(self._encoded(rows.start, rows.stop)):
            row = rows.start + place
            try:
                with image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as opened:
                    if opened.size != (width, height):  # known before anything is decoded
                        raise BadRow(f"{self._file}: {self._key}[{row}] is an image of {opened.size[1]}x{opened.size[0]}", row,
                                     hint=f"all images need the declared size, {height}x{width}")  # fmt: skip
                    pixels = np.asarray(opened.convert(MODES[channels]))
            except (OSError, ValueError, SyntaxError, TypeError, EOFError, struct.error, image.DecompressionBombError) as error:
                why = "it is neither PNG, JPEG nor WebP" if isinstance(error, image.UnidentifiedImageError) else arrow.line(error)
                raise BadRow(f"{self._file}: {self._key}[{row}] is no image: {why}", row,
                             hint="the file is damaged; copy it again, or write its images as PNG or JPEG") from None  # fmt: skip
            pixels = pixels.reshape(height, width, channels)
            made[place] = pixels.reshape(self.shape[1:]) if self._last else np.moveaxis(pixels, -1, 0)
        return made


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
        self._file_object: BinaryIO | None = None
        self._container: Any = None
        self._frames: Iterator[Any] = iter(())
        self._next = 0

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._file_object is not None:
            self._file_object.close()
            self._file_object = None

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
        self._file_object, self._container = open_video(av, self._path)
        stream = self._container.streams.video[0]
        _, _, height, width = self.shape
        if (stream.height, stream.width) != (height, width):  # known before anything is decoded
            raise BadRow(f"{self._file}: {self._key}[0] is a frame of {stream.height}x{stream.width}", 0,
                         hint=f"all frames need the declared size, {height}x{width}")  # fmt: skip
        stream.codec_context.options = {"max_pixels": str(max(1 << 24, 4 * height * width))}  # a frame may claim more than its header
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


def open_video(av: Any, path: Path) -> tuple[BinaryIO, Any]:
    """The file of a video, and its container, which reads that file alone: FFmpeg gets its bytes and no path, so that nothing in them
    can name another one. Raises OSError, ValueError, `av.FFmpegError`."""
    file = open(path, "rb")  # noqa: SIM115  the caller's
    try:
        start = file.read(64)
        file.seek(0)
        if not (start[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide") or start[:4] in (b"\x1aE\xdf\xa3", b"RIFF")):
            raise ValueError("it is neither MP4, Matroska, WebM nor AVI")
        options = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "", "enable_drefs": "0", "use_absolute_path": "0"}
        container = av.open(file, "r", options=options, io_open=_refuse_open)
        if not container.streams.video:
            container.close()
            raise ValueError("it holds no video")
        return file, container
    except BaseException:
        file.close()
        raise


def _refuse_open(*_: Any) -> Any:
    raise ValueError("it names another file")
