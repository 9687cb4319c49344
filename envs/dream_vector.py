"""A batch of dreams stepped as one Gymnasium vector environment: the spaces are the real ones, the world is dreamt.

Every row is a dream of its own, with its own random numbers. `DreamEnv` (dream.py) is one such row.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from worldmodel.envs.convert import check_actions, check_reset_mask, picture, row_seeds
from worldmodel.envs.observations import first_modality, from_frames, row_of
from worldmodel.envs.rollout import DEFAULT_HORIZON
from worldmodel.envs.snapshot import Snapshot, draw_key, row_shapes
from worldmodel.envs.spaces import to_model_action
from worldmodel.envs.starts import START_KINDS, load_world
from worldmodel.errors import UserError
from worldmodel.state import DreamState


class DreamVectorEnv(VectorEnv):
    """Many dreams of one world model, stepped together.

    A dream begins at a real context that came with the checkpoint and goes on with what the model predicts:
    observations are decoded from its latents, `reward` and `terminated` are its own, `truncated` comes at `horizon`.
    All chance is drawn from the seeds given to `reset`: the same seeds and actions give the same bits, and a row's
    dream depends on its own seed alone, not on the other rows (another `num_envs` may round differently in the last
    bit of a float).

    The environment behaves as Gymnasium's `SyncVectorEnv` of the real environment does, down to the format of `info`.

    Args:
        num_envs: dreams stepped at once. Wide is cheap: 64 rows cost little more than one.
        checkpoint: a run folder.
        horizon: steps after which a dream is truncated; if None the real environment's limit, or 200 if it has none.
        starts: `"initial"` begins where real episodes begin, `"anywhere"` in the middle of real episodes.
        autoreset_mode: `AutoresetMode.SAME_STEP`, `NEXT_STEP` or `DISABLED`, or their string values.
        render_mode: `"rgb_array"` or None; environments with vector or grid observations have no pictures to render.
        device: where the model runs.
        greedy: always dream what is most likely, instead of sampling.
        realign: after so many steps of an episode, and again and again, what the model remembers of its frame is
            brought in line with what it painted (`WorldModel.realign`); 0 never.
        loops: how often the model's core runs, if it has one: more is slower, and thinks longer. As often as in
            training on average if None.

    Raises:
        UserError: the run is missing, damaged, has no such starts or cannot loop like that.
        ValueError: another argument makes no sense.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own declaration)
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        checkpoint: str | PathLike[str],
        horizon: int | None = None,
        starts: str = "initial",
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        device: str = "cpu",
        greedy: bool = False,
        realign: int = 0,
        loops: float | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}")
        if realign < 0:
            raise ValueError(f"realign must be a number of steps, or 0 for never, not {realign}")
        if starts not in START_KINDS:
            raise ValueError(f"starts must be one of {', '.join(START_KINDS)}, not {starts!r}")
        world = load_world(checkpoint, device, loops)
        if horizon is None:
            horizon = world.environment.get("episode_limit") or DEFAULT_HORIZON
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 step, not {horizon}")
        if starts not in world.starts:
            raise UserError(
                f"the run {checkpoint} holds no contexts for starts={starts!r}; use {' or '.join(world.starts)}"
            )
        self.num_envs = num_envs
        self.model = world.model
        self.horizon = int(horizon)
        self.greedy = greedy
        self.realign = realign
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        # Copies, because a space carries random numbers of its own and the world is shared.
        self.single_observation_space = copy.deepcopy(world.observation_space)
        self.single_action_space = copy.deepcopy(world.action_space)
        self.observation_space = batch_space(world.observation_space, num_envs)
        self.action_space = batch_space(world.action_space, num_envs)
        self.metadata = dict(self.metadata, autoreset_mode=self.autoreset_mode)
        shown = self.model.config.observation.shown
        if shown is None or shown.kind != "image":
            self.metadata["render_modes"] = []
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            possible = " or ".join(map(repr, self.metadata["render_modes"])) or "only None"
            raise UserError(f"render_mode={render_mode!r} is not possible for the run {checkpoint}; it has {possible}")
        self.render_mode = render_mode

        self._starts = world.starts[starts]
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._generator_seeds: list[int] = [-1] * num_envs
        self._start = np.zeros(num_envs, dtype=np.int64)  # which context each row began at
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._state: DreamState | None = None
        self._out: Any = None  # of the last step, until it is decoded
        self._frames: np.ndarray | None = None  # decoded, or None if nobody has looked yet

    # -- Gymnasium's interface --------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new dreams.

        Args:
            seed: of the rows' random numbers: a number (row i gets `seed + i`), one a row, or None to go on with the
                random numbers that the rows already have.
            options: `{"reset_mask": (num_envs,) bool array}` restarts these rows alone.

        Returns:
            Observations of all rows, a batch as `observation_space` has it, and an empty info.
        """
        rows = self._begin(seed, options)
        self._restart(rows)
        return self._shown(), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Dream one step in every row.

        Args:
            actions: a batch from `action_space`.

        Returns:
            Observations, rewards (float64), terminated, truncated (bool), and the info, each with a row first.

        Raises:
            gymnasium.error.InvalidAction: an action is not in the action space.
            gymnasium.error.ResetNeeded: `reset` was not called before, or not for a row that ended.
        """
        checked = check_actions(self.single_action_space, actions, self.num_envs)
        _, reward, terminated, truncated = self._advance(
            torch.as_tensor(to_model_action(self.single_action_space, checked), device=self.model.device)
        )
        observations = self._shown()
        info: dict[str, Any] = {}
        ended = terminated | truncated
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            for row in np.flatnonzero(ended).tolist():
                info = self._add_info(info, {"final_obs": row_of(observations, row), "final_info": {}}, row)
            self._restart(ended)
            observations = self._shown()
        return observations, reward.cpu().numpy(), terminated, truncated, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The current observation of every row as an RGB picture, scaled up by a whole factor if it is small."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() shows nothing without render_mode="rgb_array"')
            return None
        self._require_reset()
        spec = self.model.config.observation
        assert spec.shown is not None  # or there would be no render_mode
        return tuple(picture(frame, spec.shown) for frame in first_modality(spec, self._look()))

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The rows' random number generators, as `SyncVectorEnv` gives them."""
        return tuple(self._generator(row) for row in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seeds they began with; -1 where unknown."""
        return tuple(self._generator_seeds)

    # -- Beyond Gymnasium -------------------------------------------------------------------------------------------

    def set_generators(self, generators: Sequence[np.random.Generator]) -> None:
        """Let these random number generators, one a row, draw starts and dream seeds from the next reset on."""
        if len(generators) != self.num_envs:
            raise ValueError(f"{len(generators)} generators were given for {self.num_envs} environments")
        self._generators, self._generator_seeds = list(generators), [-1] * self.num_envs

    def reset_tensor(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> Tensor:
        """`reset` without pixels.

        Returns:
            Features `(num_envs, F)` on the model's device: what an agent sees.
        """
        self._restart(self._begin(seed, options))
        return self._require_reset().feature

    def step_tensor(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """`step` without pixels, numpy or checks of the actions: nothing is decoded unless somebody looks.

        Args:
            actions: `(num_envs, *action shape)` as the model takes them (discrete actions count from 0).

        Returns:
            Features `(num_envs, F)`, rewards, terminated and truncated `(num_envs,)`, and
            `{"final_feature": (num_envs, F)}`: the features before rows that ended were restarted.
        """
        final, reward, terminated, truncated = self._advance(actions)
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            self._restart(terminated | truncated)
        end, cut = (torch.from_numpy(flag).to(self.model.device) for flag in (terminated, truncated))
        return self._require_reset().feature, reward, end, cut, {"final_feature": final}

    def get_state(self) -> Snapshot:
        """The rows as they are, to be kept, branched from or saved.

        Example:
            >>> here = venv.get_state()              # doctest: +SKIP
            >>> left = venv.step(turn_left)          # doctest: +SKIP
            >>> venv.set_state(here)                 # doctest: +SKIP
            >>> right = venv.step(turn_right)        # doctest: +SKIP
        """
        state = self._require_reset()
        return Snapshot(
            state=state,  # never written into, so it need not be copied
            frames=self._look().copy(),
            elapsed=self._elapsed.copy(),
            ended=self._ended.copy(),
            generators=copy.deepcopy(self.np_random),
        )

    def set_state(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot, which stays as it is. It may come from another environment with the same model.

        Raises:
            ValueError: the snapshot has not `num_envs` rows, or they are not of this environment's model.
        """
        if len(snapshot) != self.num_envs:
            raise ValueError(
                f"the snapshot has {len(snapshot)} rows and this environment {self.num_envs}; index it to pick rows"
            )
        there = row_shapes(snapshot.state, snapshot.frames)
        here = row_shapes(self._starts.state, self._starts.frames)
        if other := [name for name in here | there if here.get(name) != there.get(name)]:
            name = other[0]
            raise ValueError(
                f"the snapshot is of another run: a row's {name!r} is {there.get(name, 'missing')} in it and "
                f"{here.get(name, 'missing')} here; take one from an environment with this run's checkpoint"
            )
        self._state, self._out = snapshot.state, None
        self._frames = snapshot.frames.copy()
        self._elapsed, self._ended = snapshot.elapsed.copy(), snapshot.ended.copy()
        self.set_generators(copy.deepcopy(snapshot.generators))

    # -- How it works -----------------------------------------------------------------------------------------------

    def _begin(self, seed: int | Sequence[int | None] | None, options: dict[str, Any] | None) -> np.ndarray:
        """Seed the rows to be reset; returns their mask."""
        seeds = row_seeds(seed, self.num_envs)
        # The mask stays in the caller's dict: wrappers around this environment look for it there afterwards.
        rows = check_reset_mask((options or {}).get("reset_mask"), self.num_envs)
        if self._state is None and not rows.all():
            raise gymnasium.error.ResetNeeded("The first reset must reset all environments.")
        for row in np.flatnonzero(rows):
            if seeds[row] is not None:
                self._generators[row], self._generator_seeds[row] = seeding.np_random(seeds[row])
        return rows

    def _generator(self, row: int) -> np.random.Generator:
        generator = self._generators[row]
        if generator is None:
            generator, self._generator_seeds[row] = seeding.np_random()
            self._generators[row] = generator
        return generator

    def _restart(self, rows: np.ndarray) -> None:
        """Put the rows where `rows` is True at new starts, each drawn by its own generator."""
        if not rows.any():
            return
        index = np.flatnonzero(rows)
        generators = [self._generator(int(row)) for row in index]
        self._start[index] = [generator.integers(len(self._starts)) for generator in generators]
        keys = torch.tensor([draw_key(generator) for generator in generators])
        fresh = self._starts.state[torch.from_numpy(self._start[index])].reseed(keys)
        if self._state is None or rows.all():
            self._state, self._out = fresh, None
            self._frames = self._starts.frames[self._start]
        else:
            self._state = self._state.put(torch.from_numpy(index).to(self.model.device), fresh)
            if self._frames is not None:
                self._frames[index] = self._starts.frames[self._start[index]]
        self._elapsed[rows] = 0
        self._ended[rows] = False

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
        """One step of the model in all rows: feature, reward, terminated, truncated."""
        state = self._require_reset()
        ended = self._ended
        if self.autoreset_mode == AutoresetMode.DISABLED and ended.any():
            raise gymnasium.error.ResetNeeded(
                f"The episodes of rows {np.flatnonzero(ended).tolist()} are over: call reset before stepping them."
            )
        self._state, self._out = self.model.imagine(state, actions, greedy=self.greedy)
        self._frames = None
        self._elapsed += 1
        if self.realign:
            self._realign(state, actions)
        final, reward = self._out.feature, self._out.reward.double()
        terminated = self._out.terminated.cpu().numpy().copy()
        truncated = (self._elapsed >= self.horizon) & ~terminated
        if self.autoreset_mode == AutoresetMode.NEXT_STEP and ended.any():
            # These rows only begin anew in this step: their action is ignored and nothing is paid.
            reward = reward.masked_fill(torch.from_numpy(ended).to(reward.device), 0.0)
            terminated &= ~ended
            truncated &= ~ended
            self._restart(ended.copy())
        self._ended = terminated | truncated
        return final, reward, terminated, truncated

    def _realign(self, before: DreamState, actions: Tensor) -> None:
        """Show the rows whose turn it is, by their own steps, what they have painted."""
        due = np.flatnonzero(self._elapsed % self.realign == 0)
        if len(due):
            rows = torch.from_numpy(due).to(self.model.device)
            aligned, _ = self.model.realign(before[rows], actions[rows], self._out[rows])
            self._state = self._require_reset().put(rows, aligned)
            self._out = replace(self._out, feature=self._state.feature)

    def _look(self) -> np.ndarray:
        """The current frame of every row, decoded now if need be. Not to be handed out uncopied."""
        if self._frames is None:
            frames = self.model.decode(self._out).cpu().numpy()
            began = self._elapsed == 0  # these rows show where they start, not what was dreamt before
            frames[began] = self._starts.frames[self._start[began]]
            self._frames = frames
        return self._frames

    def _shown(self) -> Any:
        """The current observation of every row, as the real environment would show it."""
        return from_frames(self.single_observation_space, self._look())

    def _require_reset(self) -> DreamState:
        if self._state is None:
            raise gymnasium.error.ResetNeeded("Call reset before using the environment.")
        return self._state
