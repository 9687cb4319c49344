"""Step a world model as if it were the environment it learnt: one dream, then 64 at once, then one moment three ways.

python examples/step_a_dream.py [RUN]        # the small run beside this file if left out
"""

import sys
import time
from pathlib import Path

import gymnasium

import worldmodel  # noqa: F401 (the import registers worldmodel/Dream-v0)

run = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "run")

# One dream, behind the interface of any Gymnasium environment.
env = gymnasium.make("worldmodel/Dream-v0", checkpoint=run)
observation, info = env.reset(seed=0)
env.action_space.seed(0)
total, steps, done = 0.0, 0, False
while not done:
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    total, steps, done = total + reward, steps + 1, terminated or truncated
print(f"one dream: {steps} steps, return {total:.2f}, {'terminated' if terminated else 'truncated at the horizon'}")

# Many dreams at once: this is what the model is fast at.
venv = gymnasium.make_vec("worldmodel/Dream-v0", num_envs=64, checkpoint=run)
venv.reset(seed=0)
venv.action_space.seed(0)
episodes, began = 0, time.perf_counter()
for _ in range(20):
    observations, rewards, terminated, truncated, infos = venv.step(venv.action_space.sample())
    episodes += int((terminated | truncated).sum())  # rows restart by themselves; the last frame is infos["final_obs"]
print(f"64 dreams: {64 * 20 / (time.perf_counter() - began):.0f} steps/s, {episodes} episodes ended")

# A dream can be kept and gone on from as often as you like: here with the same chance, but other actions.
observation, info = env.reset(seed=1)
here = env.unwrapped.get_state()
actions = list(range(env.action_space.n))[:3]
futures = []
for action in actions:
    env.unwrapped.set_state(here)
    env.step(action)
    futures.append(env.unwrapped.get_state().frames[0].astype(float))  # as an array, whatever the space
for action, future in zip(actions, futures):
    print(f"action {action} instead of {actions[0]} changes the next frame by {abs(future - futures[0]).mean():.2f}")
