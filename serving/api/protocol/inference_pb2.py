"""The messages of the .proto files, made from their compiled description, protocol.desc (see `generate`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

POOL = DescriptorPool()
_files = FileDescriptorSet.FromString(Path(__file__).with_name("protocol.desc").read_bytes()).file
for _file in _files:
    POOL.AddSerializedFile(_file.SerializeToString())
DESCRIPTOR = POOL.FindFileByName("inference.proto")
_messages = {name: one for f in _files for name, one in POOL.FindFileByName(f.name).message_types_by_name.items()}


def __getattr__(name: str) -> Any:
    if name not in _messages:
        raise AttributeError(f"no message {name!r} in the .proto files")
    made = globals()[name] = GetMessageClass(_messages[name])
    return made
