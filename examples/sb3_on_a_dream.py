"""Train Stable-Baselines3's PPO inside a world model, then try it in the real environment.

    python examples/sb3_on_a_dream.py [RUN]        # the small run beside this file if left out

SB3 takes `gymnasium.make("worldmodel/Dream-v0", checkpoint=run)` as it is. It has its own idea of vector environments,
however, and a world model is much faster many rows wide: `WideDream` is all it takes. Copy it.
"""

import sys
from pathlib import Path

import gymnasium
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

import worldmodel  # noqa: F401 (the import registers worldmodel/Dream-v0)
from worldmodel.checkpoint import load_environment
from worldmodel.envs.make import make_from_spec


class WideDream(VecEnv):
    """A same-step vector environment of Gymnasium as SB3's `VecEnv`."""

    def __init__(self, venv):
        super().__init__(venv.num_envs, venv.single_observation_space, venv.single_action_space)
        self.venv = venv

    def reset(self):
        seeds, self._seeds = self._seeds, [None] * self.num_envs  # `seed(n)` counts for one reset
        return self.venv.reset(seed=seeds)[0]

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        observations, rewards, terminated, truncated, infos = self.venv.step(self.actions)
        rows = [{"TimeLimit.truncated": bool(t)} for t in truncated & ~terminated]
        for i in np.flatnonzero(terminated | truncated):
            rows[i]["terminal_observation"] = infos["final_obs"][i]
        return observations, rewards.astype(np.float32), terminated | truncated, rows

    def close(self):
        self.venv.close()

    def get_attr(self, attr_name, indices=None):
        return [getattr(self.venv, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name, value, indices=None):
        setattr(self.venv, attr_name, value)

    def env_method(self, method_name, *args, indices=None, **kwargs):
        return [getattr(self.venv, method_name)(*args, **kwargs)]

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


if __name__ == "__main__":
    run = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "run")
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 50_000

    dream = VecMonitor(WideDream(gymnasium.make_vec("worldmodel/Dream-v0", num_envs=32, checkpoint=run)))
    shape = dream.observation_space.shape
    policy = "MultiInputPolicy" if shape is None else "CnnPolicy" if len(shape) == 3 else "MlpPolicy"
    agent = PPO(policy, dream, n_steps=64, batch_size=256, n_epochs=4, seed=0, verbose=1)
    agent.learn(steps)

    real = make_from_spec(load_environment(run))
    mean, spread = evaluate_policy(agent, real, n_eval_episodes=20, warn=False)
    print(f"return in the real environment: {mean:.2f} +- {spread:.2f} over 20 episodes")
