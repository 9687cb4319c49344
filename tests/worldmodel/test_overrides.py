"""Settings by name: every field of every config can be set, and what is wrong is said in one sentence."""

from __future__ import annotations

import dataclasses

import pytest
from small_models import CONFIGS, EXTRA, STRIDE

from worldmodel.config import ModelConfig
from worldmodel.overrides import FROM_THE_DATA, override
from worldmodel.training import TrainConfig

CHOICES = {"frame.boundary": "change", "frame.order": "hilbert", "side.action": "token", "main.loop.keys": "last"}
CHOICES |= {"causal.0.residual": "mamba", "time.boundary": "learned", "causal.0.frame_boundary": "true"}


def leaves(config, path=""):
    """Every single setting of a config: its name and its value."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), path + field.name
        if name in FROM_THE_DATA:
            continue
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{name}.")
        elif isinstance(value, tuple) and (not value or dataclasses.is_dataclass(value[0])):
            for i, stage in enumerate(value):
                yield from leaves(stage, f"{name}.{i}.")
        else:
            yield name, value


def another(name, value):
    """Text of a valid value that is not `value`."""
    if isinstance(value, bool):
        return CHOICES.get(name, str(not value))
    if isinstance(value, int):
        return str(value + 1)
    if isinstance(value, float):
        return str((value + 1) / 2.5)  # shares stay below 1
    if isinstance(value, tuple):
        return ",".join(another(name, part) for part in value)
    return CHOICES.get(name, "T1" if name.startswith("main.loop") else f"{value}m1")


@pytest.mark.parametrize("config", [EXTRA, TrainConfig()], ids=["model", "training"])
def test_every_setting_can_be_set_alone(config):
    names = [name for name, _ in leaves(config)]
    assert len(names) > 10
    for name, value in leaves(config):
        text = another(name, value)
        after = dict(leaves(override(config, f"{name}={text}")))
        changed = {other for other, before in leaves(config) if after[other] != before}
        assert changed == ({name} if name != "causal.0.frame_boundary" else set())
        assert type(after[name]) is type(value)


def test_values_are_read_in_the_type_of_their_field():
    config = override(STRIDE, "causal.0.extra=1", "main.loop.layers=T1", "side.values=true", "main.loop.loops=8")
    assert (config.causal[0].extra, type(config.causal[0].extra)) == (1.0, float)
    assert config.main.loop.layers == "T1" and config.side.values is True and config.main.loop.loops == 8.0
    assert override(config, "main.loop.layers=").main.loop.layers == ""
    training = override(TrainConfig(), "training.betas=0.8,.95", "training.losses.ratio=.1", prefix="training.")
    assert training.betas == (0.8, 0.95) and training.losses.ratio == 0.1


def test_nothing_changes_nothing_and_the_last_one_holds():
    assert override(STRIDE) == STRIDE
    assert override(STRIDE, "frame.chunks=2", "frame.chunks=3") == override(STRIDE, "frame.chunks=3")


def test_settings_that_hold_only_together_need_no_order():
    both = ("causal.0.frame_boundary=false", "causal.0.extra=1")
    assert override(STRIDE, *both) == override(STRIDE, *reversed(both))
    with pytest.raises(ValueError, match="extra above 0"):
        override(STRIDE, both[0])


def test_a_modality_is_set_by_its_number_and_none_can_be_added():
    config = override(CONFIGS["record_learned"], "frame.beside.1.patch=2", "frame.beside.0.chunks=1.5")
    assert [(part.patch, part.chunks) for part in config.frame.beside] == [(1, 1.5), (2, 1.0)]
    with pytest.raises(ValueError, match=r"3 modalities, so frame\.beside must describe all but the first, not 3"):
        override(config, "frame.beside.2.chunks=1.5")
    with pytest.raises(ValueError, match=r"nothing to set in frame\.beside: observations have one modality only"):
        override(STRIDE, "frame.beside.0.chunks=1.5")


def test_a_stage_can_be_added():
    config = override(STRIDE, "causal.1.width=28", "causal.1.extra=1")
    assert config.causal == (STRIDE.causal[0], dataclasses.replace(STRIDE.causal[0], width=28, extra=1.0))
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("main.loop", "NAME=VALUE"),
        ("main.lop.loops=8", r"'main\.lop'.*main\.width.*main\.loop"),
        ("foo=1", "'foo'.*frame.*causal.*main"),
        ("main=3", r"main is not a single setting.*main\.width"),
        ("causal=3", r"causal is not a single setting.*causal\.0"),
        ("causal.0=3", r"causal\.0 is not a single setting.*causal\.0\.extra"),
        ("causal.2.extra=1", r"'causal\.2'.*causal\.0, causal\.1"),
        ("causal.first.extra=1", r"'causal\.first'.*causal\.0"),
        ("frame.chunks.x=1", r"frame\.chunks is a single setting"),
        ("main.loop.loops=eight", r"main\.loop\.loops must be a number.*'eight'"),
        ("main.width=1.5", r"main\.width must be a whole number.*'1\.5'"),
        ("main.width=-3", "0 or more"),
        ("main.loop.spread=nan", "0 or more"),
        ("main.loop.spread=inf", "0 or more"),
        ("side.values=maybe", "true or false"),
        ("frame.boundary=everywhere", "'stride', 'learned', 'tried', 'surprise', 'change', 'random', 'none'"),
        ("observation.scale=1", "'observation'"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(assignment, words):
    with pytest.raises(ValueError, match=words):
        override(STRIDE, assignment)


def test_who_misspells_a_setting_of_another_config_is_told_of_it():
    with pytest.raises(ValueError, match=r"no setting 'trainig'; known here are time, .*mamba, training$"):
        override(STRIDE, "trainig.average=0.9", beside=("training",))
    with pytest.raises(ValueError, match=r"'main\.training'; known here are main\.width, .*main\.loop$"):
        override(STRIDE, "main.training=1", beside=("training",))


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("training.averag=1", r"'training\.averag'.*training\.average"),
        ("training=3", r"training is not a single setting; known here are training\.batch_size, .*training\.average"),
        ("training.betas=0.9", "2 values"),
        ("training.batch_size=0", "batch_size must be above 0"),
        ("training.average=1", "below 1"),
    ],
)
def test_so_are_settings_of_training(assignment, words):
    with pytest.raises(ValueError, match=words):
        override(TrainConfig(), assignment, prefix="training.")
