"""Models to serve: eight of our own, and users' own by file or factory."""

from serving.models.builtin.registry import BUILTIN, DEFAULT_MODELS
from serving.models.load import builtin_spec, load_model
from serving.models.served import ModelSpec, ServedModel

__all__ = ["BUILTIN", "DEFAULT_MODELS", "ModelSpec", "ServedModel", "builtin_spec", "load_model"]
