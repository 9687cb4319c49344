"""How true a world model's dream is: some real frames, then the recorded actions open loop, frame against frame.

Every figure stands beside three others: the last frame repeated, the closed loop (the ceiling), and the same model with
shuffled actions (the floor). Frames that differ from the one before are told apart, for most steps of a random player
change nothing; and so are frames on ground that the context showed, for nobody can predict the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.envs.fidelity_metrics import (
    TileVocabulary,
    calibration,
    event_scores,
    frame_scores,
    mean_scores,
    reward_scores,
    together,
)
from worldmodel.envs.observations import first_modality, modalities_of
from worldmodel.envs.open_loop import Rollout, closed_loop, observe_context, open_loop, repeat_last_frame, truth
from worldmodel.envs.seen_ground import on_seen_ground
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.test_set import TestSet
from worldmodel.envs.windows import Windows, choose_windows, fitting_context
from worldmodel.errors import UserError
from worldmodel.model import WorldModel
from worldmodel.specs import ObservationSpec

FORMAT_VERSION = 1
# Wrappers whose images are made of tiles, and the tile's side.
TILED = {"minigrid_rgb": 8, "minigrid_rgb16": 16, "minigrid_rgb_direction": 8, "minigrid_rgb_full": 8}


def measure_fidelity(
    model: WorldModel,
    test_set: TestSet,
    training_frames: np.ndarray | None = None,
    *,
    context: int = 8,
    horizons: tuple[int, ...] = (1, 5, 15, 50),
    windows: int = 256,
    seed: int = 0,
    realign: int = 0,
) -> dict[str, Any]:
    """Measure a world model on a test set.

    Args:
        model: in evaluation mode.
        test_set: of the environment that the model was trained on.
        training_frames: `(n, *observation shape)` the distinct frames of the training data, for the vocabulary of
            tiles; the test set's own frames are used if left out.
        context: real frames before each dream; fewer where no episode is longer, see `fitting_context`.
        horizons: rising numbers of steps at which dream and truth are compared.
        windows: sampled at each horizon, or all there are.
        seed: of the sample, the model's noise and the shuffling of actions.
        realign: steps after which a dream is shown what it painted; 0 for never.

    Returns:
        A nested dict of plain numbers, ready for JSON; see `score`.

    Raises:
        UserError: model and test set have different observations, or no episode is long enough.
    """
    spec, table = model.config.observation, test_set.table
    if table.frames.shape[1:] != spec.shape:
        raise UserError(
            f"the model's observations have the shape {spec.shape}, those of the test set {table.frames.shape[1:]}: "
            "measure it on a test set of its own environment"
        )
    context = fitting_context(table, context)
    chosen = choose_windows(table, test_set.succeeding, context=context, horizons=horizons, count=windows, seed=seed)
    if not len(chosen):
        raise UserError(
            f"no episode of the test set goes on for {horizons[0]} steps behind {context} frames of context, so there "
            "is nothing to compare"
        )
    state = observe_context(model, table, chosen, seed=seed)
    predictions = {
        "dream": open_loop(model, state, table, chosen, realign=realign),
        "closed_loop": closed_loop(model, state, table, chosen),
        "shuffled_actions": open_loop(model, state, table, chosen, shuffle_seed=seed, realign=realign),
        "repeat_last_frame": repeat_last_frame(table, chosen),
    }
    size = TILED.get((test_set.environment.get("wrappers") or [""])[-1])
    tile_source = first_modality(spec, table.frames if training_frames is None else training_frames)
    vocabulary = TileVocabulary.of(tile_source, size) if size else None
    report = score(predictions, table, chosen, shown=test_set.shown, spec=spec, vocabulary=vocabulary)
    report["environment"] = test_set.environment.get("id")
    report["seed"], report["realign"] = seed, realign
    if vocabulary:
        source = "test set" if training_frames is None else "training data"
        report["vocabulary"] = {"tiles": len(vocabulary.tiles), "source": source}
    return report


def score(
    predictions: dict[str, Rollout],
    table: FrameTable,
    windows: Windows,
    *,
    shown: np.ndarray | None,
    spec: ObservationSpec,
    vocabulary: TileVocabulary | None,
) -> dict[str, Any]:
    """Compare predictions of the same windows with what really came.

    Args:
        predictions: by name.
        table: the test set's frames.
        windows: what was predicted.
        shown: `(N, X, Y)` bool, the cells that each frame of the table shows, or None.
        spec: what an observation looks like.
        vocabulary: of the data's tiles, if observations are made of tiles.

    Returns:
        `horizons` by number of steps as a string, each with `windows`, `frames` (by prediction, then by class of frame,
        see `frame_classes`; the same for each of several modalities, in `modalities`), `reward` and `termination` (by
        prediction), and for the dream `reward_mean` and `termination_probability` against what came. Beside them
        `chunks` and `start_entropy` a frame.
    """
    true = truth(table, windows)
    report: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "context": windows.context,
        "horizons": {},
        "chunks": {name: p.chunks for name, p in predictions.items() if p.chunks is not None},
        "start_entropy": {name: p.start_entropy for name, p in predictions.items() if p.start_entropy is not None},
    }
    modalities = [
        Scored(part, _scale(part, frames), vocabulary if part is spec.shown else None)
        for part, frames in modalities_of(spec, table.frames)
    ]
    for column, horizon in enumerate(windows.horizons):
        rows, event_rows = (np.flatnonzero(chosen[:, column]) for chosen in (windows.sampled, windows.eventful))
        classes = frame_classes(table, windows, shown, horizon, rows)
        entry: dict[str, Any] = {"windows": len(rows), "frames": {}, "reward": {}, "termination": {}}
        if spec.parts:
            entry["modalities"] = {part.name: {} for part in spec.parts}
        for name, predicted in predictions.items():
            each = _score_each(modalities, spec, predicted.frames[rows, column], true.frames[rows, column])
            scores = together(each)
            entry["frames"][name] = {label: mean_scores(scores, chosen) for label, chosen in classes.items()}
            for part, own in zip(spec.parts, each):
                entry["modalities"][part.name][name] = {label: mean_scores(own, c) for label, c in classes.items()}
            entry["reward"][name] = reward_scores(predicted.reward[event_rows, column], true.reward[event_rows, column])
            entry["termination"][name] = event_scores(
                predicted.terminated[event_rows, column], true.terminated[event_rows, column]
            )
        if "dream" in predictions:
            dream = predictions["dream"]
            entry["reward_mean"] = calibration(dream.reward_mean[rows, column], true.reward[rows, column])
            entry["termination_probability"] = calibration(
                dream.terminated_probability[rows, column], true.terminated[rows, column]
            )
        report["horizons"][str(horizon)] = entry
    return report


@dataclass(frozen=True)
class Scored:
    """How one modality is scored: what it looks like, the range of its values, and its tiles if it is made of such."""

    spec: ObservationSpec
    scale: float | np.ndarray
    vocabulary: TileVocabulary | None


def _scale(spec: ObservationSpec, frames: np.ndarray) -> float | np.ndarray:
    """A vector's entries have no common range: each is measured by its own, as far as the test set goes."""
    return np.maximum(np.ptp(frames, axis=0), 1e-6) if spec.kind == "vector" else spec.value_range


def _score_each(
    modalities: list[Scored], spec: ObservationSpec, predicted: np.ndarray, true: np.ndarray
) -> list[dict[str, np.ndarray]]:
    return [
        frame_scores(dreamed, real, kind=m.spec.kind, scale=m.scale, vocabulary=m.vocabulary)
        for m, (_, dreamed), (_, real) in zip(modalities, modalities_of(spec, predicted), modalities_of(spec, true))
    ]


def frame_classes(
    table: FrameTable, windows: Windows, shown: np.ndarray | None, horizon: int, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Which of some windows' frames at a horizon belong to each class, `(len(rows),)` bool by the class's name.

    Returns:
        `all`; `changed`: differs from the frame before; and where `shown` is given `seen`: shows no ground that the
        context did not show; `changed_seen`: both; `changed_way`: changed, and every frame since the context was on
        seen ground. Only the last can always be foretold: who has crossed unknown ground may have met a wall there.
    """
    at = windows.at(horizon)[rows]
    classes = {"all": np.ones(len(rows), dtype=bool), "changed": table.index[at] != table.index[at - 1]}
    if shown is not None:
        context = windows.begin[rows, None] + np.arange(windows.context)
        classes["seen"] = on_seen_ground(shown, context, at)
        classes["changed_seen"] = classes["changed"] & classes["seen"]
        way = classes["changed_seen"].copy()
        for step in range(1, horizon):
            way &= on_seen_ground(shown, context, windows.at(step)[rows])
        classes["changed_way"] = way
    return classes
