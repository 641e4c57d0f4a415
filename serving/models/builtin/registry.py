"""The models that come with the project: one file and one line here for each.

All have random weights: a scheduler sees their time, not their answers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Builtin:
    """A model of our own: where its class is, and its input.

    Attributes:
        factory: `module:class`, called without arguments.
        kind: a word for the architecture.
        input_shape: shape of one input, without the batch dimension.
        input_dtype: NumPy name of the input's type.
        input_high: integer examples are drawn from [0, input_high).
        default: part of the default set; the others are kept for models that were not seen in training.
    """

    factory: str
    kind: str
    input_shape: tuple[int, ...]
    input_dtype: str = "float32"
    input_high: int = 2
    default: bool = True


BUILTIN: dict[str, Builtin] = {
    "resnet": Builtin("serving.models.builtin.resnet:ResNet", "convolutional", (3, 64, 64)),
    "mobilenet": Builtin("serving.models.builtin.mobilenet:MobileNet", "depthwise", (3, 128, 128)),
    "bert": Builtin("serving.models.builtin.bert:Bert", "transformer", (64,), "int64", 8192),
    "lstm": Builtin("serving.models.builtin.lstm:Lstm", "recurrent", (32, 64)),
    "dlrm": Builtin("serving.models.builtin.dlrm:Dlrm", "recommender", (32,), "int64", 8192),
    "vit": Builtin("serving.models.builtin.vit:Vit", "vision-transformer", (3, 96, 96)),
    "unet": Builtin("serving.models.builtin.unet:Unet", "encoder-decoder", (3, 64, 64), default=False),
    "mixer": Builtin("serving.models.builtin.mixer:MlpMixer", "mlp", (3, 96, 96), default=False),
    "empty": Builtin("serving.models.builtin.empty:Empty", "none", (16,), default=False),
}

DEFAULT_MODELS: tuple[str, ...] = tuple(name for name, model in BUILTIN.items() if model.default)
