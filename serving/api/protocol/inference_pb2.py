"""The messages of inference.proto, made from its compiled description, inference.desc (see `generate`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_pool = DescriptorPool()
_pool.AddSerializedFile(Path(__file__).with_name("inference.desc").read_bytes())
DESCRIPTOR = _pool.FindFileByName("inference.proto")


def __getattr__(name: str) -> Any:
    if name not in DESCRIPTOR.message_types_by_name:
        raise AttributeError(f"no message {name!r} in inference.proto")
    made = globals()[name] = GetMessageClass(DESCRIPTOR.message_types_by_name[name])
    return made
