import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.envs.video import read_video, write_video, write_viewable


@settings(deadline=None, max_examples=25)
@given(
    height=st.integers(16, 70),
    width=st.integers(16, 70),
    length=st.integers(1, 20),
    seed=st.integers(0, 1000),
    levels=st.sampled_from([2, 256]),
)
def test_every_bit_returns(tmp_path_factory, height, width, length, seed, levels):
    path = tmp_path_factory.mktemp("video") / "v.mkv"
    rng = np.random.default_rng(seed)
    frames = (rng.integers(0, levels, (length, height, width, 3)) * (255 // (levels - 1))).astype(np.uint8)
    write_video(path, frames)
    again = read_video(path)
    assert again.dtype == np.uint8 and again.shape == frames.shape
    assert (again == frames).all()


def test_the_same_frames_make_the_same_file():
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    one, two = io.BytesIO(), io.BytesIO()
    write_video(one, frames)
    write_video(two, frames.copy())
    assert one.getvalue() == two.getvalue()


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 16, 16, 3), np.uint8), np.zeros((2, 16, 16, 3)), np.zeros((16, 16, 3), np.uint8)]
)
def test_what_is_no_video_is_refused(tmp_path, frames):
    with pytest.raises(ValueError, match="uint8 frames"):
        write_video(tmp_path / "v.mkv", frames)


def test_a_cut_file_does_not_pass_as_whole(tmp_path):
    path = tmp_path / "v.mkv"
    frames = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    write_video(path, frames)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with contextlib.suppress(OSError, ValueError):
        assert len(read_video(path)) < 40
    path.write_bytes(b"no video")
    with pytest.raises((OSError, ValueError)):
        read_video(path)


def test_the_viewable_kind_is_large_and_close(tmp_path):
    frames = np.zeros((6, 33, 21, 3), np.uint8)
    frames[:, 8:16, 4:12] = (200, 60, 40)
    write_viewable(tmp_path / "v.mp4", frames)
    shown = read_video(tmp_path / "v.mp4")
    assert shown.shape == (6, 430, 274, 3)  # 13 times, and one more line to be even
    enlarged = frames.repeat(13, axis=1).repeat(13, axis=2)
    assert np.abs(shown[:, :429, :273].astype(int) - enlarged).mean() < 3
