"""The world: scheduling state, contention, interference predictor, event dynamics, and the environments on top.

Importing this package registers the environments with Gymnasium.
"""

import envs.registration  # noqa: F401
