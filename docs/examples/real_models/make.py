"""Writes the models of models.yaml with random weights, beside copies of it and of its Python files: python make.py FOLDER."""

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper


def networks(width: int, layers: int) -> dict[str, transformers.PreTrainedModel]:
    """Networks of transformers, each from its config."""
    size = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 4 * width}
    image = {"image_size": 64, "patch_size": 16}
    return {
        "bert": transformers.BertForSequenceClassification(
            transformers.BertConfig(vocab_size=1000, max_position_embeddings=128, **size)
        ),
        "vit": transformers.ViTForImageClassification(transformers.ViTConfig(**image, **size)),
        "resnet": transformers.ResNetForImageClassification(
            transformers.ResNetConfig(embedding_size=width // 4, hidden_sizes=[width // 2, width], depths=[2, 2])
        ),
        "yolos": transformers.YolosForObjectDetection(
            transformers.YolosConfig(**(image | {"image_size": [64, 64]}), num_detection_tokens=10, **size)
        ),
        "wav2vec2": transformers.Wav2Vec2ForCTC(
            transformers.Wav2Vec2Config(
                feat_extract_norm="layer", do_stable_layer_norm=True, conv_dim=[width // 2] * 7, **size,
                num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
            )
        ),
    }  # fmt: skip


def tagger(width: int) -> onnx.ModelProto:
    """A graph with dynamic axes: (batch, length) ids to (batch, length, 5) scores of tags."""
    rng = np.random.default_rng(0)
    shapes = {"table": (1000, width), "inner": (width, 4 * width), "outer": (4 * width, 5)}
    weights = {name: rng.normal(0, shape[0] ** -0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"]),
        helper.make_node("MatMul", ["embedded", "inner"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "outer"], ["tags"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])
    tags = helper.make_tensor_value_info("tags", TensorProto.FLOAT, ["batch", "length", 5])
    constants = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "tagger", [ids], [tags], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write(folder: Path, width: int = 256, layers: int = 4) -> None:
    """Write everything."""
    torch.manual_seed(0)
    for name, network in networks(width, layers).items():
        network.eval().save_pretrained(folder / name)
    onnx.save(tagger(width), folder / "tagger.onnx")
    for name in ("models.yaml", "forest.py", "mood.py", "words.py"):
        shutil.copy(Path(__file__).with_name(name), folder / name)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER [WIDTH [LAYERS]]")
    write(Path(sys.argv[1]), *map(int, sys.argv[2:]))
