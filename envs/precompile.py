"""Compiles the environment into the cache, so that its first reset is as quick as the next: ``python -m envs.precompile``.

``make`` runs it once after installation. It takes half a minute, and nothing where the cache is filled already.
"""

from __future__ import annotations

from envs.dual_priority import DualPriorityEnv


def main() -> None:
    """Make the default environment, and take one step in it."""
    env = DualPriorityEnv()
    env.reset(seed=0)
    env.step(env.worlds.sim.n_actions - 1)
    env.close()


if __name__ == "__main__":
    main()
