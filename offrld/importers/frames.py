"""Images of a source as rows ``[N, C, H, W]``: encoded images and frames of a video, decoded on demand."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from offrl_store.errors import InvalidInput, OffrlError
from offrld.importers import arrow
from offrld.importers.bad_data import BadRow

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # number of channels -> Pillow's name

#: Pillow's modes for images with one channel of more than 8 bits (depth in millimetres or metres) -> dtype.
DEEP = {"I;16": np.uint16, "I;16L": np.uint16, "I;16B": np.uint16, "I": np.int32, "F": np.float32}

#: Mode -> the modes that Pillow converts to it without changing a value: palettes, black and white, grey as three equal channels.
EXACT = {"L": ("1", "L"), "RGB": ("P", "1", "L", "RGB"), "RGBA": ("P", "PA", "1", "L", "LA", "RGB", "RGBA")}

#: Image formats that are decoded from untrusted bytes. Pillow knows more; it would pass PostScript to an external program.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")

#: Containers that FFmpeg may detect in an untrusted video. Others are excluded because some of them, such as playlists, open further files.
VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"


def picture_dtype(content: bytes, channels: int, file: str, key: str) -> np.dtype:
    """Return the dtype of an encoded image: uint8, or that of its single channel (16-bit depth). Raises `BadRow` if it is not an image."""
    with _opened(content, file, key, 0) as opened:
        return np.dtype(DEEP.get(opened.mode, np.uint8)) if channels == 1 else np.dtype(np.uint8)


@contextlib.contextmanager
def _opened(content: bytes, file: str, key: str, row: int) -> Iterator[Any]:
    """Open an encoded image. Raises `BadRow` if it is not an image, also if decoding fails in the ``with`` block."""
    image = arrow.need("PIL.Image", file)
    try:
        with image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as opened:
            yield opened
    except (OSError, ValueError, SyntaxError, TypeError, EOFError, struct.error, image.DecompressionBombError) as error:
        if isinstance(error, OffrlError):
            raise
        why = "it is neither PNG, JPEG, WebP nor TIFF" if isinstance(error, image.UnidentifiedImageError) else arrow.line(error)
        raise BadRow(
            f"{file}: {key}[{row}] is not an image: {why}",
            row,
            hint="the file is damaged; copy it again, or write its images as PNG or JPEG",
        ) from None


class EncodedImages:
    """Encoded images (PNG, JPEG), as the data of a column.

    Args:
        encoded: returns the bytes of rows ``start:stop``.
        shape: ``(N, C, H, W)``; an image of another size is an error.
        file, key: names in messages.
        last: whether ``shape`` and the rows are ``(N, H, W, C)`` or ``(N, H, W)``.
        dtype: dtype of the pixels (`picture_dtype`). An image of another depth, or one that would lose a value, is an error.
    """

    def __init__(
        self,
        encoded: Callable[[int, int], list[bytes]],
        shape: tuple[int, ...],
        file: str,
        key: str,
        *,
        last: bool = False,
        dtype: Any = np.uint8,
    ) -> None:
        self._encoded, self.shape, self._file, self._key, self._last = encoded, shape, file, key, last
        self.dtype = np.dtype(dtype)

    def __getitem__(self, rows: slice) -> np.ndarray:
        channels, height, width = ((*self.shape[3:], 1)[0], *self.shape[1:3]) if self._last else self.shape[1:]
        block = np.empty((rows.stop - rows.start, *self.shape[1:]), self.dtype)
        for place, content in enumerate(self._encoded(rows.start, rows.stop)):
            row = rows.start + place
            with _opened(content, self._file, self._key, row) as opened:
                if opened.size != (width, height):  # Pillow knows the size before it decodes
                    raise BadRow(
                        f"{self._file}: {self._key}[{row}] is an image of {opened.size[1]}x{opened.size[0]}",
                        row,
                        hint=f"all images need the declared size, {height}x{width}",
                    )
                pixels = self._pixels(opened, channels, row)
            pixels = pixels.reshape(height, width, channels)
            block[place] = pixels.reshape(self.shape[1:]) if self._last else np.moveaxis(pixels, -1, 0)
        return block

    def _pixels(self, opened: Any, channels: int, row: int) -> np.ndarray:
        """Return the unchanged pixels of an image. Raises `BadRow` if the column's channels and dtype cannot hold them."""
        mode = MODES[channels]
        if self.dtype == np.uint8 and opened.mode in EXACT[mode] and not ("transparency" in opened.info and mode != "RGBA"):
            return np.asarray(opened.convert(mode))
        if channels == 1 and opened.mode in DEEP and DEEP[opened.mode] == self.dtype:
            return np.asarray(opened, self.dtype)
        raise BadRow(
            f"{self._file}: {self._key}[{row}] is a picture of the mode {opened.mode}: {channels} channels of {self.dtype} do not hold it",
            row,
            hint="all pictures of a field need the same number of channels and the same depth: declare those that they have",
        )


class VideoFrames:
    """Frames of a video from a point in time on, as the data of a column. Read rows in ascending order: a step back reopens the video.

    Args:
        path: the video.
        shape: ``(N, C, H, W)`` with C = 3; frames of another size are an error.
        start: time of the first frame in seconds. The time of frame i is ``start + i / fps``.
        fps: frames per second.
        file, key: names in messages.
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
        block = np.empty((rows.stop - rows.start, *self.shape[1:]), np.uint8)
        try:
            if self._container is None or rows.start < self._next:
                self._open(av)
            for row in range(self._next, rows.stop):
                frame = self._at(row)
                self._next = row + 1
                if row < rows.start:
                    continue
                if (frame.height, frame.width) != (height, width):
                    raise BadRow(
                        f"{self._file}: {self._key}[{row}] is a frame of {frame.height}x{frame.width}",
                        row,
                        hint=f"all frames need the declared size, {height}x{width}",
                    )
                block[row - rows.start] = np.moveaxis(frame.to_ndarray(format="rgb24"), -1, 0)
        except (OSError, ValueError, av.FFmpegError) as error:
            self.close()
            raise InvalidInput(
                f"{self._file}: {self._key} cannot be decoded: {arrow.line(error)}", hint="the video is damaged or cut short; copy it again"
            ) from None
        return block

    def _open(self, av: Any) -> None:
        self.close()
        self._file_object, self._container = open_video(av, self._path)
        stream = self._container.streams.video[0]
        _, _, height, width = self.shape
        if (stream.height, stream.width) != (height, width):  # the header declares the size before anything is decoded
            raise BadRow(
                f"{self._file}: {self._key}[0] is a frame of {stream.height}x{stream.width}",
                0,
                hint=f"all frames need the declared size, {height}x{width}",
            )
        stream.codec_context.options = {
            "max_pixels": str(max(1 << 24, 4 * height * width))
        }  # the stream may declare larger frames than its header
        self._container.seek(max(0, int((self._start - 0.5 / self._fps) / stream.time_base)), stream=stream)
        self._frames, self._next = self._container.decode(stream), 0

    def _at(self, row: int) -> Any:
        """Return the frame of a row, within half a frame of its time. Raises `BadRow` if it is missing."""
        expected = self._start + row / self._fps
        for frame in self._frames:
            if frame.time is None or frame.time < expected - 0.5 / self._fps:
                continue
            if frame.time < expected + 0.5 / self._fps:
                return frame
            break
        raise BadRow(f"{self._file}: {self._key} has no frame at {expected:.3f} s", row, hint="the video is cut short; copy it again")


def open_video(av: Any, path: Path) -> tuple[BinaryIO, Any]:
    """Open a video. Returns its file, which the caller closes, and its container.

    FFmpeg gets the bytes of the file instead of a path, and it may not open other files that the video names.
    Raises OSError, ValueError, `av.FFmpegError`.
    """
    file = open(path, "rb")  # noqa: SIM115  the caller closes it
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
