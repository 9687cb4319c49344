import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from worldmodel.envs.import_npz import import_npz
from worldmodel.envs.make import make_from_spec
from worldmodel.envs.store import EpisodeStore
from worldmodel.errors import UserError


def arrays(length=5, **changes):
    rng = np.random.default_rng(length)
    data = {
        "frames": rng.integers(0, 256, (length + 1, 20, 18, 3), dtype=np.uint8),
        "actions": np.arange(length) % 3,
        "rewards": rng.normal(size=length),
        "terminated": np.array(False),
        "truncated": np.array(True),
    } | changes
    return {key: value for key, value in data.items() if value is not None}


def save(folder, *episodes):
    files = [folder / f"{k}.npz" for k in range(len(episodes))]
    for file, episode in zip(files, episodes):
        np.savez(file, **episode)
    return files


def test_files_become_episodes_in_order(tmp_path):
    originals = [arrays(5), arrays(3), arrays(8, actions=np.full(8, 6), terminated=np.eye(8, dtype=bool)[-1])]
    import_npz(save(tmp_path, *originals), tmp_path / "store")
    store = EpisodeStore.open(tmp_path / "store")
    assert store.action_space == Discrete(7) and store.observation_space == Box(0, 255, (20, 18, 3), np.uint8)
    for episode, original in zip(store.episodes(), originals, strict=True):
        assert (episode.observations == original["frames"]).all()
        assert (episode.actions == original["actions"]).all()
        assert (episode.rewards == original["rewards"].astype(np.float32)).all()
        assert episode.terminated == original["terminated"].any() and episode.truncated
    with pytest.raises(UserError, match="imported"):
        make_from_spec(store.environment)


def test_vectors_boxes_and_the_other_name(tmp_path):
    def episode(scale):
        observations, actions = np.linspace(0, 1, 12).reshape(4, 3), scale * np.array([[0.0, 1], [2, 3], [-1, 0]])
        return {
            "observations": observations,
            "actions": actions,
            "rewards": np.zeros(3),
            "terminated": np.zeros(3, bool),
        }

    store = import_npz(save(tmp_path, episode(1), episode(-2)), tmp_path / "store")
    assert store.observation_space == Box(-np.inf, np.inf, (3,), np.float32)
    assert store.action_space == Box(np.float32([-4, -6]), np.float32([2, 3]), dtype=np.float32)
    assert [e.truncated for e in store.episodes()] == [False, False]


def test_several_choices_and_bools(tmp_path):
    several = arrays(4, actions=np.array([[0, 1], [2, 0], [1, 1], [0, 4]]))
    assert import_npz(save(tmp_path, several), tmp_path / "a").action_space == MultiDiscrete([3, 5])
    pressed = arrays(2, actions=np.array([True, False]))
    assert import_npz(save(tmp_path, pressed), tmp_path / "b").action_space == Discrete(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": None}, r"frames \(or observations\)"),
        ({"actions": None}, "lacks the key actions; it has frames, rewards"),
        ({"terminated": None}, "lacks the key terminated"),
        ({"frames": np.zeros((5, 20, 18, 3), np.uint8)}, "need 6 frames"),
        ({"frames": np.zeros((6, 20, 18), np.uint8)}, r"\(H, W, C\)"),
        ({"frames": np.zeros((6, 3, 20, 18), np.uint8)}, "channels last"),
        ({"frames": np.zeros((6, 20, 18, 3), np.int64)}, "int64"),
        ({"frames": np.zeros((6, 4), np.float32) + np.nan}, "frames.*finite"),
        ({"frames": np.zeros((), np.uint8)}, r"\(H, W, C\)"),
        ({"rewards": np.array([0, 1, np.inf, 0, 0])}, "rewards.*finite"),
        ({"actions": np.array([0, 1, -1, 0, 0])}, "count from 0"),
        ({"actions": np.array(["left"] * 5)}, "whole numbers or floats"),
        ({"actions": np.zeros((5, 1, 1))}, r"\(T, n\)"),
        ({"actions": np.full(5, np.nan)}, "actions.*finite"),
        ({"terminated": np.array([0, 0, 1, 0, 0], bool)}, "before the last step"),
        ({"truncated": np.array(0.5)}, "truncated must be one bool"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, changes, message):
    files = save(tmp_path, arrays(), arrays(**changes))
    with pytest.raises(UserError, match=message) as caught:
        import_npz(files, tmp_path / "store")
    assert "1.npz" in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_files_that_do_not_belong_together(tmp_path):
    other_size = arrays(frames=np.zeros((6, 20, 20, 3), np.uint8))
    with pytest.raises(UserError, match=r"1\.npz: frames are .* but .*0\.npz has"):
        import_npz(save(tmp_path, arrays(), other_size), tmp_path / "store")
    other_actions = arrays(actions=np.zeros((5, 2)))
    with pytest.raises(UserError, match=r"1\.npz: actions are"):
        import_npz(save(tmp_path, arrays(), other_actions), tmp_path / "store")


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"no \.npz files"):
        import_npz([], tmp_path / "store")
    with pytest.raises(UserError, match=r"missing\.npz does not exist"):
        import_npz([tmp_path / "missing.npz"], tmp_path / "store")
    for content in (b"", b"hello", b"PK\x03\x04broken"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.npz is not a readable"):
            import_npz([tmp_path / "bad.npz"], tmp_path / "store")
    np.save(tmp_path / "array.npz.npy", np.zeros(3))
    with pytest.raises(UserError, match="not a readable"):
        import_npz([tmp_path / "array.npz.npy"], tmp_path / "store")
