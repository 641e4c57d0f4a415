"""Local folders of Hugging Face as programs: config and safetensors, by the class that the config names. Extra `hf`.

Nothing is fetched, no code of the folder is run and nothing is unpickled.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from torch import nn

from serving.models.program import CONVENTIONS, Described
from serving.models.tensors import VARIES
from serving.models.torch_program import Loaded, TorchProgram, frozen_weights
from serving.models.users_code import users_code
from traces.errors import InputError


def open_folder(folder: Path, where: str) -> TorchProgram:
    """The model in a folder.

    Raises:
        InputError: no such folder, another format of weights, or a class that transformers does not have.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError:
        raise InputError(f"{where}: hf: needs the extra hf: pip install 'strait-rl[hf]'") from None
    if not (folder / "config.json").is_file():
        raise InputError(f"{where}: {folder} holds no config.json; hf: takes a local folder of Hugging Face")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{where}: {folder} holds no *.safetensors; save_pretrained writes them")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with users_code(f"{where}: {folder} cannot be read"):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    names = getattr(config, "architectures", None) or ["none"]
    kind = getattr(transformers, names[0], None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise InputError(f"{where}: {folder} is for {names[0]}, which transformers {transformers.__version__} lacks")
    config.use_cache = False
    config.return_dict = True

    @functools.cache
    def load(device: str) -> Loaded:
        with users_code(f"{where}: {folder} cannot be loaded"):
            module: nn.Module = kind.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype="auto",
            )
        return Loaded(frozen_weights(module, device))

    program = _FolderProgram(load, where, f"hf:{folder}", _inputs(kind, config, where))
    program.max_size = getattr(config, "max_position_embeddings", None)
    program.kind = config.model_type
    return program


class _FolderProgram(TorchProgram):
    """A module of transformers, whose steps depend on shapes at most; each size that is served is compared all the same."""

    by_shapes = True


def _inputs(kind: Any, config: Any, where: str) -> Described:
    """The inputs of a model by its modality."""
    main = kind.main_input_name
    vocabulary = getattr(config, "vocab_size", None)
    text = {"pad": getattr(config, "pad_token_id", None) or 0}
    if vocabulary:  # a token outside of it would make the batch fail
        text |= {"high": vocabulary, "bounded": True}
    forms: dict[str, dict[str, Any]] = {
        "input_ids": {"shape": (VARIES,), "datatype": "INT64"} | text,
        "pixel_values": {"shape": _image(config), "datatype": "FP32"},
        "input_values": {"shape": (VARIES,), "datatype": "FP32"},
    }
    if main not in forms:
        raise InputError(f"{where}: a model of {main} is not served by hf:; load it in a factory of your own")
    found: Described = {main: forms[main]}
    arguments = kind.forward.__code__.co_varnames[: kind.forward.__code__.co_argcount]
    if main != "pixel_values" and _heeds_mask(config):
        masked = ["attention_mask"]
        if main == "input_ids" and getattr(config, "type_vocab_size", 0) > 1:
            masked.append("token_type_ids")
        for name in masked:
            if name in arguments or "kwargs" in kind.forward.__code__.co_varnames:
                found[name] = CONVENTIONS[name] | {"shape": (VARIES,), "datatype": "INT64"}
    if "token_type_ids" in found:
        found["token_type_ids"] |= {"high": config.type_vocab_size, "bounded": True}
    return found


def _heeds_mask(config: Any) -> bool:
    """Audio models whose features are normalised over time were trained without a mask, which they would not heed there."""
    return getattr(config, "feat_extract_norm", "layer") == "layer"


def _image(config: Any) -> tuple[int, ...]:
    size = getattr(config, "image_size", None)
    if size is None:
        return (getattr(config, "num_channels", 3), VARIES, VARIES)
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    return (getattr(config, "num_channels", 3), *sides)
