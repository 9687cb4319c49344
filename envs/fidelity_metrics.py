"""How true predicted frames, rewards and ends are: pure functions of arrays, predicted against true.

A looser measure than the tile vocabulary calls a frame without its key exact: a key is eight pixels of three thousand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

EXACT_ERROR = 0.01  # mean absolute error in [0, 1] that an exact frame stays below, beside having the right tiles
EVENT = 0.05  # a reward is an event if it is further from 0 than this
PSNR_CAP = 100.0  # dB; what an error of nothing is called


def to_tiles(frames: np.ndarray, size: int) -> np.ndarray:
    """`(N, H, W, C)` frames to `(N, H / size * W / size, size * size * C)` tiles, row by row; a rest is cut off."""
    n, height, width, channels = frames.shape
    rows, columns = height // size, width // size
    cut = frames[:, : rows * size, : columns * size].reshape(n, rows, size, columns, size, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows * columns, size * size * channels)


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of a uint8 matrix, and for each row which of them it is."""
    rows = np.ascontiguousarray(rows)
    keys = rows.view(np.dtype((np.void, rows.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return rows[first], inverse.ravel()


@dataclass(frozen=True)
class TileVocabulary:
    """The distinct tiles of the training data's frames.

    Attributes:
        tiles: `(V, size * size * C)` uint8.
        size: side of a tile in pixels.
    """

    tiles: np.ndarray
    size: int = 8

    @classmethod
    def of(cls, frames: np.ndarray, size: int = 8) -> TileVocabulary:
        """Collect the tiles of `(N, H, W, C)` uint8 frames."""
        tiles = to_tiles(frames, size)
        return cls(tiles=_distinct(tiles.reshape(-1, tiles.shape[-1]))[0], size=size)

    def nearest(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up every tile of `(N, H, W, C)` uint8 frames.

        Returns:
            `(N, tiles)` index of the nearest tile of the vocabulary (squared distance), and `(N, tiles)` bool whether
            it is the very same.
        """
        tiles = to_tiles(frames, self.size)
        distinct, inverse = _distinct(tiles.reshape(-1, tiles.shape[-1]))
        known = self.tiles.astype(np.float64)  # fp64: integers that large are not exact in fp32
        product = distinct.astype(np.float64) @ known.T
        nearest = ((known**2).sum(1) / 2 - product).argmin(axis=1)
        same = (self.tiles[nearest] == distinct).all(axis=1)
        return nearest[inverse].reshape(tiles.shape[:2]), same[inverse].reshape(tiles.shape[:2])


def frame_scores(
    predicted: np.ndarray,
    true: np.ndarray,
    *,
    kind: str,
    scale: float | np.ndarray,
    vocabulary: TileVocabulary | None,
) -> dict[str, np.ndarray]:
    """Score each of N frames.

    Args:
        predicted, true: `(N, *observation shape)` in the observation's dtype.
        kind: of the `ObservationSpec`.
        scale: the range of a value, or of each entry: errors are divided by it.
        vocabulary: given for images that are made of tiles.

    Returns:
        `(N,)` arrays: `error` (mean absolute), `squared_error` (mean), and for tiled images, symbolic grids and choices
        `exact` (bool) and `tile_rate` (share of right tiles or cells); a true tile that the vocabulary lacks cannot
        be predicted right, their share is `unknown_tiles`.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"predicted frames have the shape {predicted.shape}, true ones {true.shape}")
    shape = (len(true), int(np.prod(true.shape[1:])))
    difference = predicted.astype(np.float32) - true.astype(np.float32)
    difference = (difference / scale).reshape(shape)
    scores = {"error": np.abs(difference).mean(axis=1), "squared_error": (difference**2).mean(axis=1)}
    if kind == "choice":
        right = (predicted == true).all(axis=-1)
        scores |= {"exact": right, "tile_rate": right.astype(np.float64)}
    elif kind == "grid":
        right = (predicted == true).all(axis=-1).reshape(len(true), int(np.prod(true.shape[1:-1])))
        scores |= {"exact": right.all(axis=1), "tile_rate": right.mean(axis=1)}
    elif vocabulary is not None:
        nearest, known = vocabulary.nearest(true)
        right = (vocabulary.nearest(predicted)[0] == nearest) & known
        scores |= {
            "exact": right.all(axis=1) & (scores["error"] < EXACT_ERROR),
            "tile_rate": right.mean(axis=1),
            "unknown_tiles": 1 - known.mean(axis=1),
        }
    return scores


def together(each: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The `frame_scores` of frames of several modalities: exact where all are, else their mean."""
    names = set(each[0]).intersection(*each)
    scores = {name: np.mean([own[name] for own in each], axis=0) for name in names}
    if "exact" in names:
        scores["exact"] = np.all([own["exact"] for own in each], axis=0)
    return scores


def mean_scores(scores: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, Any]:
    """Average `frame_scores` over the frames of a mask.

    Returns:
        `frames` (how many), the means of exact, tile_rate, unknown_tiles and error where they are given, else `psnr`
        (dB, of the mean squared error); None where there is no frame.
    """
    count = int(chosen.sum())
    result: dict[str, Any] = {"frames": count}
    for name in ("exact", "tile_rate", "unknown_tiles", "error"):
        if name in scores:
            result[name] = float(scores[name][chosen].mean()) if count else None
    if "exact" not in scores:
        squared = float(scores["squared_error"][chosen].mean()) if count else None
        result["psnr"] = None if squared is None else min(PSNR_CAP, -10 * np.log10(max(squared, 1e-20)))
    return result


def event_scores(predicted: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """Precision, recall and F1 of `(N,)` bool predictions; None where they are 0 / 0."""
    hits = int((predicted & true).sum())
    claimed, happened = int(predicted.sum()), int(true.sum())
    return {
        "steps": len(true),
        "true": happened,
        "predicted": claimed,
        "precision": hits / claimed if claimed else None,
        "recall": hits / happened if happened else None,
        "f1": 2 * hits / (claimed + happened) if claimed + happened else None,
    }


def reward_scores(predicted: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """`event_scores` of `(N,)` rewards, and `size_error`: mean absolute error where both see an event."""
    predicted_event, true_event = np.abs(predicted) > EVENT, np.abs(true) > EVENT
    both = predicted_event & true_event
    size_error = float(np.abs(predicted - true)[both].mean()) if both.any() else None
    return {**event_scores(predicted_event, true_event), "size_error": size_error}


def calibration(expected: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """Mean of `(N,)` expected values against the mean of what came (bool or float), and the mean squared difference."""
    if not len(true):
        return {"steps": 0, "expected": None, "observed": None, "squared_error": None}
    true = true.astype(np.float64)
    return {
        "steps": len(true),
        "expected": float(expected.mean()),
        "observed": float(true.mean()),
        "squared_error": float(((expected - true) ** 2).mean()),
    }
