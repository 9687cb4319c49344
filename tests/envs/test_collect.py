import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import last_action_env
import pytest

from worldmodel.envs.collect import collect
from worldmodel.envs.make import spec_of
from worldmodel.envs.store import EpisodeStore
from worldmodel.errors import UserError

EMPTY = "MiniGrid-Empty-Random-6x6-v0"


def episodes_of(root):
    return {
        e.seed: (e.length, e.observations.tobytes(), e.actions.tobytes()) for e in EpisodeStore.open(root).episodes()
    }


def test_it_collects_exactly_as_many_steps_as_asked(tmp_path):
    store = collect(last_action_env.ID, tmp_path, 100, num_envs=3, progress=False)
    assert store.steps == 100 == EpisodeStore.open(tmp_path).steps
    assert collect(last_action_env.ID, tmp_path, 100, progress=False).steps == 100
    assert len(EpisodeStore.open(tmp_path)) == len(store)


def test_the_same_seed_collects_the_same(tmp_path):
    for name, num_envs in (("a", 3), ("b", 3)):
        collect(last_action_env.ID, tmp_path / name, 60, num_envs=num_envs, seed=5, progress=False)
    collect(last_action_env.ID, tmp_path / "c", 60, seed=6, progress=False)
    assert episodes_of(tmp_path / "a") == episodes_of(tmp_path / "b") != episodes_of(tmp_path / "c")


def test_it_goes_on_where_it_stopped_without_playing_an_episode_twice(tmp_path):
    collect(last_action_env.ID, tmp_path, 50, num_envs=3, progress=False)
    before = episodes_of(tmp_path)
    collect(last_action_env.ID, tmp_path, 120, num_envs=3, progress=False)
    after = episodes_of(tmp_path)
    store = EpisodeStore.open(tmp_path)
    assert store.steps == 120
    assert len(after) == len(store)  # no seed twice
    assert before.items() <= after.items()


def test_another_environment_is_refused(tmp_path):
    collect(last_action_env.ID, tmp_path, 10, progress=False)
    with pytest.raises(UserError, match="choose another folder"):
        collect(spec_of(last_action_env.ID, max_length=3), tmp_path, 20, progress=False)
    with pytest.raises(UserError, match="CartPole"):
        collect("CartPole-v1", tmp_path, 20, progress=False)


def test_no_environments_are_refused(tmp_path):
    with pytest.raises(UserError, match="num_envs"):
        collect(last_action_env.ID, tmp_path, 10, num_envs=0)


def test_a_spec_collects_what_it_describes(tmp_path):
    store = collect(spec_of("CartPole-v1", max_episode_steps=5), tmp_path, 40, progress=False)
    assert store.codec == "npz" and max(entry["length"] for entry in store.index) == 5
    assert all(episode.truncated and not episode.terminated for episode in store.episodes() if episode.length == 5)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_interrupted_collecting_leaves_a_valid_store_that_goes_on(tmp_path, how):
    command = (
        f"from worldmodel.envs.collect import collect; collect({EMPTY!r}, {str(tmp_path)!r}, 10**6, progress=False)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command], stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while len(list((Path(tmp_path) / "episodes").glob("*.npz"))) < 8:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    assert process.wait(timeout=60) != 0
    store = EpisodeStore.open(tmp_path)
    left = episodes_of(tmp_path)
    assert len(left) == len(store) >= 7  # every episode of the index can be read
    goal = store.steps + 300
    assert collect(EMPTY, tmp_path, goal, progress=False).steps == goal
    after = episodes_of(tmp_path)
    assert left.items() <= after.items() and len(after) == len(EpisodeStore.open(tmp_path))
    assert not [path.name for path in tmp_path.rglob("*.part")]
