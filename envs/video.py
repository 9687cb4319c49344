"""Frames as video: exact for the store, small and playable for people.

The exact kind is H.264 in RGB at quantizer 0, which returns every bit. Ordinary video (yuv420p) does not: it mixes the
colours of neighbouring pixels and can erase a small key altogether, so it is only for looking at.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter

LOSSLESS = {"qp": "0", "preset": "veryfast", "g": "16"}
VIEWABLE = {"crf": "16", "preset": "medium"}


def write_video(path: str | Path | BinaryIO, frames: np.ndarray, fps: int = 10) -> None:
    """Write frames without loss, as Matroska.

    Args:
        path: of the new file, any suffix, or an open binary file.
        frames: `(T, H, W, 3)` uint8.
        fps: for players only; nothing here depends on time.
    """
    _encode(path, frames, fps, container="matroska", codec="libx264rgb", pixels="rgb24", options=LOSSLESS)


def read_video(path: str | Path) -> np.ndarray:
    """Read what `write_video` wrote, bit for bit.

    Returns:
        `(T, H, W, 3)` uint8.

    Raises:
        OSError, ValueError: the file is missing, or is no video. (PyAV's errors are of these two kinds.)
    """
    # One converter for all frames, on one thread: frame.to_ndarray(format=...) starts a thread pool for each frame,
    # which costs a hundred times the conversion.
    converter = VideoReformatter()
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            frames.append(converter.reformat(frame, format="rgb24", threads=1).to_ndarray())
    if not frames:
        raise ValueError(f"{path} holds no frames")
    return np.stack(frames)


def write_viewable(path: str | Path, frames: np.ndarray, fps: int = 10, least_side: int = 256) -> None:
    """Write an MP4 that every player shows; small frames are enlarged with sharp pixels.

    Args:
        path: of the new file, ending in `.mp4`.
        frames: `(T, H, W, 3)` uint8.
        fps: frames a second.
        least_side: enlarge by a whole number until the shorter side has at least this many pixels.
    """
    factor = max(1, -(-least_side // min(frames.shape[1:3])))
    large = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    odd = [(0, 0), (0, large.shape[1] % 2), (0, large.shape[2] % 2), (0, 0)]  # yuv420p wants even sides
    even = np.pad(large, odd, mode="edge")
    _encode(path, even, fps, container="mp4", codec="libx264", pixels="yuv420p", options=VIEWABLE)


def _encode(
    path: str | Path | BinaryIO,
    frames: np.ndarray,
    fps: int,
    *,
    container: str,
    codec: str,
    pixels: str,
    options: dict[str, str],
) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(f"a video takes (T, H, W, 3) uint8 frames, not {frames.shape} {frames.dtype}")
    converter = VideoReformatter()
    target = str(path) if isinstance(path, str | Path) else path
    with av.open(target, "w", format=container, container_options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream(codec, rate=fps, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        for pts, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if pixels != "rgb24":
                frame = converter.reformat(frame, format=pixels, threads=1)
            frame.pts = pts
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
