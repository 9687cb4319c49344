"""Steps are told apart by how often training showed them, whoever dreams."""

import numpy as np
import pytest
import torch
import transitions

from worldmodel.envs.fidelity_metrics import TileVocabulary
from worldmodel.envs.make import spec_of
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.test_set import load_test_set
from worldmodel.model import WorldModel
from worldmodel.presets import preset
from worldmodel.specs import ActionSpec, ObservationSpec


@pytest.mark.parametrize(
    "count, name", [(0, "never"), (1, "1 to 4"), (4, "1 to 4"), (5, "5 to 49"), (50, "50 or more")]
)
def test_classes(count, name):
    assert transitions.class_of(count) == name


def test_transitions_are_counted_within_episodes():
    table = FrameTable(
        frames=np.array([[1], [2], [3]], np.uint8),
        index=np.array([0, 1, 0, 1, 2]),
        action=np.array([0, 5, 6, 0, 5]),
        reward=np.zeros(5, np.float32),
        terminated=np.zeros(5, bool),
        first=np.array([True, False, False, True, False]),
        begin=np.array([0, 3, 5]),
    )
    assert transitions.shown_in_training(table) == {(b"\1", 5, b"\2"): 1, (b"\2", 6, b"\1"): 1, (b"\2", 5, b"\3"): 1}


def test_a_dream_of_the_truth_is_exact_and_every_step_is_counted_once(tmp_path, monkeypatch):
    test = load_test_set(spec_of("MiniGrid-Empty-5x5-v0"), tmp_path, episodes=2, progress=False)
    model = WorldModel(preset("tiny", ObservationSpec(shape=(56, 56, 3)), ActionSpec(sizes=(7,))))
    vocabulary = TileVocabulary.of(test.table.frames, 8)
    found = transitions.tally(model.eval(), test.table, test, vocabulary, length=14)
    totals = {kind: sum(total for _, total in classes.values()) for kind, classes in found.items()}
    assert len(set(totals.values())) == 1 and totals["action"] > 0
    assert sum(exact for exact, _ in found["action"].values()) == 0, "an untrained model paints nothing right"
    assert "never" not in found["shown in training"], "these are the very episodes"

    frames = iter(
        [
            test.table.frames[test.table.index[np.minimum(test.table.begin[:-1] + step, test.table.begin[1:] - 1)]]
            for step in range(8, 14)
        ]
    )
    monkeypatch.setattr(model, "decode", lambda _: torch.from_numpy(next(frames)))
    right = transitions.tally(model, test.table, test, vocabulary, length=14)
    assert all(exact == total for classes in right.values() for exact, total in classes.values())


def test_a_window_is_shown_all_the_way_if_every_step_of_it_is(tmp_path):
    test = load_test_set(spec_of("MiniGrid-Empty-5x5-v0"), tmp_path, episodes=3, progress=False)
    whole = transitions.shown_all_the_way(test.table, test, windows=10_000)
    assert all(shown == total for classes in whole.values() for shown, total in classes.values())
    assert whole["all"]["1"][1] > 0

    # Training lacks one of the transitions: all windows that come past it, and no others.
    t = test.table
    lacking = {(t.index[at - 1], t.action[at], t.index[at]) for at in [t.begin[-2] + 8]}
    unseen = np.array(
        [(t.index[i - 1], t.action[i], t.index[i]) in lacking and not t.first[i] for i in range(len(t.index))]
    )
    known = transitions.shown_in_training(t)
    for before, action, after in lacking:
        del known[t.frames[before].tobytes(), int(action), t.frames[after].tobytes()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transitions, "shown_in_training", lambda _: known)
        found = transitions.shown_all_the_way(t, test, windows=10_000)["all"]
    for horizon in (1, 5):
        ends = [at for a, b in zip(t.begin[:-1], t.begin[1:]) for at in range(a + 7 + horizon, b)]
        shown = [not unseen[at - horizon + 1 : at + 1].any() for at in ends]
        assert found[str(horizon)] == [sum(shown), len(shown)]
        assert sum(shown) < len(shown)
