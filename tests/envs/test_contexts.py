from dataclasses import fields

import last_action_env
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from last_action_env import shown_action, shown_tag, shown_time

from worldmodel.envs.collect import collect
from worldmodel.envs.contexts import burn_in, choose_contexts, load_contexts, save_contexts
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.spaces import action_spec, observation_spec
from worldmodel.errors import UserError
from worldmodel.model import WorldModel
from worldmodel.presets import preset


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return FrameTable.from_store(collect(last_action_env.ID, tmp_path_factory.mktemp("store"), 150, progress=False))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    env = last_action_env.LastActionEnv
    model = WorldModel(preset("tiny", observation_spec(env.observation_space), action_spec(env.action_space))).eval()
    with torch.no_grad():  # a new model does not look at actions yet
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 80), length=st.integers(1, 10), seed=st.integers(0, 100))
def test_contexts_are_real_prefixes(table, count, length, seed):
    contexts = choose_contexts(table, count, length, seed)
    assert len(contexts) == count and contexts.frames.shape[:2] == (count, length)
    assert contexts.initial.sum() == count - count // 2
    terminal = {(t.item(), g.item()) for t, g in zip(*_time_and_tag(table.frames[table.index[table.terminated]]))}
    for row in range(count):
        valid = contexts.valid[row]
        frames, actions = contexts.frames[row, -valid:], contexts.actions[row, -valid:]
        time, tag = _time_and_tag(frames)
        assert (np.diff(time) == 1).all() and len(set(tag)) == 1
        assert (time[-1], tag[-1]) not in terminal
        assert (actions == np.where(time == 0, 0, shown_action(frames))).all()
        assert (contexts.first[row, -valid:] == (time == 0)).all() and not contexts.first[row, :-valid].any()
        assert contexts.initial[row] == (time[-1] == 0)
        assert valid == min(length, time[-1] + 1)
        assert contexts.elapsed[row] == time[0]


def _time_and_tag(frames):
    return shown_time(frames), shown_tag(frames)


def test_no_context_is_drawn_twice_while_there_are_others(table):
    contexts = choose_contexts(table, 2 * table.num_episodes, 1)
    first = contexts[contexts.initial]
    assert len(first) == table.num_episodes
    assert {frame.tobytes() for frame in first.frames[:, 0]} == {
        table.frames[k].tobytes() for k in table.index[table.first]
    }


def test_they_return_from_their_file(tmp_path, table):
    contexts = choose_contexts(table)
    save_contexts(tmp_path / "contexts.npz", contexts)
    again = load_contexts(tmp_path / "contexts.npz")
    for field in fields(contexts):
        one, other = getattr(contexts, field.name), getattr(again, field.name)
        assert one.dtype == other.dtype and (one == other).all()
    assert (tmp_path / "contexts.npz").stat().st_size < 20_000


def test_a_file_of_before_contexts_knew_the_time_is_read(tmp_path, table):
    contexts = choose_contexts(table, 6)
    old = {f.name: getattr(contexts, f.name) for f in fields(contexts) if f.name != "elapsed"}
    np.savez_compressed(tmp_path / "contexts.npz", format_version=np.array(1), **old)
    again = load_contexts(tmp_path / "contexts.npz")
    assert (again.frames == contexts.frames).all() and (again.elapsed == 0).all()
    np.savez_compressed(tmp_path / "contexts.npz", format_version=np.array(9), **old)
    with pytest.raises(UserError, match="version 9"):
        load_contexts(tmp_path / "contexts.npz")


def test_burning_in_ends_at_the_time_of_the_last_frame(table, model):
    contexts = choose_contexts(table, 12, 5)
    assert len(set(contexts.elapsed.tolist())) > 2
    state, _ = burn_in(model, contexts)
    assert state.tensors["elapsed"].tolist() == shown_time(contexts.frames[:, -1]).tolist()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: None, "missing"),
        (lambda b: b[:100], "damaged"),
        (lambda b: b"", "damaged"),
        (lambda b: b"x", "damaged"),
        (lambda b: b[:60] + bytes(255 - x for x in b[60:90]) + b[90:], "damaged"),  # the beginning of what is packed
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, table, damage, message):
    path = tmp_path / "contexts.npz"
    save_contexts(path, choose_contexts(table, 4))
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_contexts(path)


def test_burning_in_equals_observing_each_context_alone(table, model):
    contexts = choose_contexts(table, 10, 5)
    assert len(set(contexts.valid.tolist())) > 2
    state, out = burn_in(model, contexts, seed=3)
    assert state.batch_size == 10
    keys = model.initial_state(10, seed=3).tensors["key"]
    for row in range(10):
        alone = model.initial_state(1, keys[row : row + 1], torch.from_numpy(contexts.elapsed[row : row + 1]))
        for t in range(5 - contexts.valid[row], 5):
            frame, action, first = (
                torch.from_numpy(part[row : row + 1, t]) for part in (contexts.frames, contexts.actions, contexts.first)
            )
            alone, last = model.observe(alone, action, frame, first)
        for name, value in alone.tensors.items():
            torch.testing.assert_close(state.tensors[name][row : row + 1], value, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out.feature[row : row + 1], last.feature, atol=1e-4, rtol=1e-4)


def test_burning_in_repeats_with_its_seed(table, model):
    contexts = choose_contexts(table, 6, 4)
    action = torch.zeros(6, dtype=torch.int64)
    # What is seen is coded without noise: only what is dreamed from there tells the seeds apart.
    one, same, other = (model.imagine(burn_in(model, contexts, seed=s)[0], action)[1].feature for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_dream_goes_on_from_a_context(table, model):
    contexts = choose_contexts(table, 6, 4)
    state, _ = burn_in(model, contexts[~contexts.initial])
    _, out = model.imagine(state, torch.zeros(3, dtype=torch.int64))
    assert model.decode(out).shape == (3, 16, 16, 3)
