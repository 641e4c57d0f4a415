"""The environment for Gymnasium: one world, which is the batch of one."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from envs.drawing.frame import draw
from envs.scheduling.observation import LIMIT
from envs.simulation.config import EnvConfig, make_config
from envs.simulation.options import with_options
from envs.simulation.worlds import Worlds, world_seed


class DualPriorityEnv(gym.Env):
    """Two-priority inference on one accelerator: what to run next, in which batch, and what to hold back.

    ## Description
    A server has one accelerator and several models. Requests arrive for a model with a priority (high or low) and a
    deadline, and wait in one queue for each priority and model. Batches run side by side on K streams, where they slow each
    other down: input copies share the link, executions share compute, memory bandwidth and cache. At each decision the agent
    dispatches a batch on a free stream or defers. The slowdown is predicted by a model that learns online from the batches
    that completed; the device itself follows measurements (see docs/concepts.md). After the setting of Zhao and Georgantas,
    "Perceiving Priority and Interference in ML Inference Serving" (arXiv 2604.28175); the design is our own.

    ## Action Space
    `Discrete(2 * M * B + 1)` for M models and B batch sizes:

    | action | meaning |
    |---|---|
    | `(p * M + m) * B + b` | dispatch the first `batch_sizes[b]` requests of the queue of priority p (0 high, 1 low), model m |
    | `2 * M * B` | DEFER: dispatch nothing until the next arrival or completion, or for `defer` mean solo latencies |

    A batch of high priority that is larger than its queue takes the first of low priority of the same model along; without
    a request of high priority there is none, and a batch of low priority holds no other. A dispatch is valid when a stream
    is free, fewer than `max_batches_per_core` batches share its core (0: no limit) and as many requests are queued. DEFER is
    always valid. An action that is not valid counts as DEFER and is reported in `info["invalid_action"]`.

    ## Observation Space
    `Box(-4, 4, (2 * M * B * 18 + 20,), float32)`: 18 features for each dispatch, in the order of the actions, all 0 where it
    is not valid; then 20 of the system. Free of units: times are divided by the request's relative deadline or by the mean
    solo latency of the models, counts are logarithms or shares; everything is clipped to [-4, 4].

    | | feature of a dispatch | | feature of the system |
    |---|---|---|---|
    | 0 | valid (1) | 0 | free streams, share of K |
    | 1 | share of the batch that is of high priority | 1 | in flight with any high, share of K |
    | 2 | slack of the head at the predicted finish, share of its deadline | 2 | in flight with low alone |
    | 3 | the same at the calibrated 90 % quantile | 3 | log(1 + queued), high |
    | 4 | that, in ten mean solo latencies | 4 | log(1 + queued), low |
    | 5 | log of the predicted duration over the mean solo latency | 5 | log(1 + queued work), high |
    | 6 | batch size over the largest | 6 | log(1 + queued work), low |
    | 7 | share of the batch expected to be in time | 7 | offered work, high, over what the device does at once |
    | 8 | high-priority requests in flight that are expected to be met less, / 2 | 8 | offered work, low |
    | 9 | low-priority ones, / 4 | 9 | time to the next predicted finish |
    | 10 | delay added to batches in flight with any high, in mean solo latencies | 10 | least slack in flight with any high |
    | 11 | the same for those with low alone | 11 | least slack in flight with low alone |
    | 12 | log of the value expected to be met per ms, over what a full device earns of late | 12 | least slack queued, high |
    | 13 | time the head has waited, share of its deadline | 13 | least slack queued, low |
    | 14 | log(1 + requests left that it could have taken) | 14 | calibrated 90 % quantile |
    | 15 | predicted slowdown - 1 | 15 | idle cores, share |
    | 16 | execution time per request over that of a batch of 1 | 16 | batches that the device does at once, share of K |
    | 17 | a larger batch is valid | 17 | log of the batches in flight over that |
    | 18 |  | 18 | log of what a high-priority request counts, over 5 |
    | 19 |  | 19 | log of the value met of late in a mean solo latency |

    ## Rewards
    At each decision minus the cost of the requests that ended badly since the last one (late, dropped or refused): 5 for
    high and 1 for low priority. With another `high_weight` their ratio is that, and their sum stays 6. 0 is the best
    return. Decisions are not equally far apart: discount by `info["dt_ms"]` where that matters.

    ## Starting State
    Time 0, empty queues, idle streams, and the interference predictor at its prior; the world has run to its first decision.
    Load, burstiness, priority share, deadline factors and mix are drawn from the ranges of the settings.

    ## Episode End
    Terminates when every request has ended: met, late, or dropped (its queue was full, its deadline out of reach, or it
    still waited `end_ms` after the last arrival). There is no truncation.

    ## Arguments
    `config` (an `envs.simulation.config.EnvConfig`), or its fields by name, `render_mode`. `import envs` registers the ids;
    without it the id names the package, `gym.make("envs:Strait/DualPriority-v2")`:

    >>> import gymnasium as gym, envs
    >>> env = gym.make("Strait/DualPriority-v2", load=0.9, streams=4)
    >>> observation, info = env.reset(seed=1)
    >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample(info["action_mask"].astype("int8")))

    `reset(seed=..., options=...)` takes: "load" (number or pair, share of the measured capacity), "workload" (a
    `traces.workload.Workload`, a file of one, "twin:NAME" or "trace:NAME"; replayed whole and as recorded unless a load is
    given too; None: generated again) and "profile" (one with as many models and batch sizes). Options stay in force until
    others are given. Without a seed the next episode follows from the last.

    ## Info
    | key | |
    |---|---|
    | `action_mask` | (A,) bool, valid actions; also `action_masks()` |
    | `dt_ms` | time from the last decision to this |
    | `time_ms` | time in the episode |
    | `invalid_action` | bool, the last action was not valid |
    | `outcomes` | (2, 6) int64, requests that ended, by priority and outcome (`envs.scheduling.state.OUTCOMES`) |
    | `seed` | uint64, of the episode as the worlds count them: the same in a batch of any size |

    ## Vectorised Use
    `gym.make_vec("Strait/DualPriority-v2", num_envs=256)` gives `envs.vector.DualPriorityVectorEnv`, N worlds in one
    compiled call, bit for bit the same as this one with seeds seed, seed + 1, ...; `envs.sb3.SB3VecEnv(256)` is that for
    stable-baselines3 and sb3-contrib.

    ## Variants
    `-Overload` (load 1.1 to 1.6), `-Bursty` (bursts of 4 to 8 times the mean rate), `-Trace` (windows of arrivals like those
    of a real trace), `-Tiny` (two models, two streams, 300 ms).

    ## Version History
    * v2: a batch of high priority may hold low priority of its model too (`mixed_batches`).
    * v1: the device is the measured A100 (`gpu-a100`), where overlap is nearly free for some pairs and dear for others.
    * v0: the device was made up (`synthetic:0`); kept for comparison.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 10}

    def __init__(self, config: EnvConfig | None = None, render_mode: str | None = None, **settings: Any) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode {render_mode!r}; expected one of {self.metadata['render_modes']}")
        self.config = make_config(config, settings)
        self.render_mode = render_mode
        self.worlds = Worlds(self.config, 1, autoreset=False)
        self.observation_space = spaces.Box(-LIMIT, LIMIT, (self.worlds.sim.obs_size,), np.float32)
        self.action_space = spaces.Discrete(self.worlds.sim.n_actions)
        self._begun = False
        self._actions = np.zeros(1, np.int64)
        self._window: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; see the class for ``options``."""
        super().reset(seed=seed)
        seeds = self.worlds.next_seeds() if self._begun else None
        if options:
            self.worlds = with_options(self.worlds, options)
        if seed is not None or seeds is None:
            seeds = np.array([world_seed(int(self.np_random.integers(2**62)) if seed is None else seed)], np.uint64)
        self.worlds.reset(seeds)
        self._begun = True
        if self.render_mode == "human":
            self.render()
        return self.worlds.obs[0].copy(), self._info()

    def step(self, action: int | np.integer) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One decision; see the class for what is returned."""
        if not self._begun:
            raise gym.error.ResetNeeded("call reset before step")
        self._actions[0] = action
        self.worlds.step(self._actions)
        if self.render_mode == "human":
            self.render()
        out = self.worlds.out
        return self.worlds.obs[0].copy(), float(out.reward[0]), bool(out.done[0]), False, self._info()

    def _info(self) -> dict[str, Any]:
        worlds = self.worlds
        return {
            "action_mask": worlds.masks[0].copy(),
            "dt_ms": float(worlds.out.dt[0]),
            "time_ms": float(worlds.sim.state.scheduler[0].now),
            "invalid_action": bool(worlds.out.invalid[0]),
            "outcomes": worlds.sim.state.count[0].copy(),
            "seed": worlds.seeds[0],
        }

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: all but the window."""
        return vars(self) | {"_window": None}

    def action_masks(self) -> np.ndarray:
        """(A,) bool: valid actions now, as sb3-contrib asks for them."""
        return self.worlds.masks[0].copy()

    def state_dict(self) -> dict[str, np.ndarray]:
        """The world, mid-episode, as arrays; ``np.savez(path, **env.state_dict())`` keeps it without pickles."""
        return self.worlds.state_dict()

    def load_state_dict(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from ``state_dict``; raises InputError for another world."""
        self.worlds.load_state_dict(arrays)
        self._begun = True

    def render(self) -> np.ndarray | None:
        """With "rgb_array" the picture, (height, 720, 3) uint8; with "human" it is shown by matplotlib."""
        if self.render_mode is None:
            gym.logger.warn("render() without a render_mode; give render_mode='rgb_array' to gym.make")
            return None
        picture = draw(self.worlds.sim.state, self.worlds.profile.models)
        if self.render_mode == "rgb_array":
            return picture
        self._show(picture)
        return None

    def _show(self, picture: np.ndarray) -> None:
        from matplotlib import pyplot

        if self._window is None:
            figure = pyplot.figure("Strait", figsize=(picture.shape[1] / 100, picture.shape[0] / 100), dpi=100)
            axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
            axes.axis("off")
            self._window = axes.imshow(picture)
        self._window.set_data(picture)
        canvas = self._window.figure.canvas
        canvas.draw_idle()
        canvas.flush_events()

    def close(self) -> None:
        """Close the window, if any."""
        if self._window is not None:
            from matplotlib import pyplot

            pyplot.close(self._window.figure)
            self._window = None
