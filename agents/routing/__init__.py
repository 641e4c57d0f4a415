"""Routers, one file each: which replica a request is sent to; ``registry`` knows them by name.

Importing this package registers the environment of `agents.routing.env` with Gymnasium.
"""

from gymnasium.envs.registration import register

register(id="Strait/Routing-v0", entry_point="agents.routing.env:RoutingEnv")
