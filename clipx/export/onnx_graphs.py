"""Graphs of ONNX: made from programs, joined to a whole model, quantized, saved. Owns onnx, and its quantization.

Shapes: B images, N texts, D embedding.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from clipx.export.programs import conversion_error, quiet

OPSET = 18
"""Version of the operators: what torch converts to at once, and every onnxruntime-web since 1.14 has."""
MAX_BYTES = 1_900_000_000
"""Of the weights within a graph's file, which may have 2 GiB; more lie beside, where transformers.js finds them."""

Graph = Any
"""An onnx.ModelProto."""


def convert(program: ExportedProgram, output: str | Sequence[str], inputs: Mapping[str, tuple[str, ...]]) -> Graph:
    """Converts the program of a tower, or of a whole model.

    Args:
        program: with one output, or several.
        output: its name in the graph, or their names in their order.
        inputs: the names of the inputs, in their order, each with those of its first axes where they are free.

    Raises:
        RunError: there is an operator that has no form in ONNX.
    """
    outputs = [output] if isinstance(output, str) else list(output)
    try:
        with quiet():
            converted = torch.onnx.export(
                program,
                (),
                input_names=list(inputs),
                output_names=outputs,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        assert converted is not None
        graph = converted.model_proto
    except Exception as error:  # a converter may raise anything
        raise conversion_error(error, f"ONNX has no form of the tower that gives {', '.join(outputs)}") from error
    _forget_origin(graph)
    _name_axes(graph, inputs)
    return graph


def join(vision: Graph, text: Graph, *, logit_scale: float, logit_bias: float | None) -> Graph:
    """The whole model of two towers: unit-length embeddings, and their logits with and without transposition."""
    from onnx import compose, helper

    parts = [compose.add_prefix(vision, "vision/"), compose.add_prefix(text, "text/")]
    inputs = [value for tower in (vision, text) for value in tower.graph.input]
    enter = [
        helper.make_node("Identity", [value.name], [f"{name}/{value.name}"])
        for name, tower in (("vision", vision), ("text", text))
        for value in tower.graph.input
    ]
    graph = helper.make_graph(
        [*enter, *(node for part in parts for node in part.graph.node), *_head(has_bias=logit_bias is not None)],
        "model",
        inputs,
        _head_outputs(vision, text),
        [*(weight for part in parts for weight in part.graph.initializer), *_head_weights(logit_scale, logit_bias)],
    )
    return helper.make_model(
        graph,
        opset_imports=_merged_opsets(vision, text),
        ir_version=max(vision.ir_version, text.ir_version),
        functions=[function for part in parts for function in part.functions],
        producer_name="clipx",
    )


def also_named(graph: Graph, output: str, name: str) -> Graph:
    """A copy of a graph that gives one of its outputs by a second name, too."""
    from onnx import helper

    copied = type(graph)()
    copied.CopyFrom(graph)
    copied.graph.node.append(helper.make_node("Identity", [output], [name]))
    added = copied.graph.output.add()
    added.CopyFrom(next(value for value in graph.graph.output if value.name == output))
    added.name = name
    return copied


def quantize(graph: Graph) -> Graph:
    """A copy of a graph whose matrices and tables have 8 bits; inputs of products are quantized as they come.

    Convolutions keep their weights: as products of integers they are slower than they were.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, quiet():
        folded, quantized = Path(folder) / "folded.onnx", Path(folder) / "quantized.onnx"
        _fold_constants(graph, Path(folder) / "whole.onnx", folded)
        quantize_dynamic(
            folded,
            quantized,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=num_bytes(graph) > MAX_BYTES,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(quantized)


def save_graph(graph: Graph, path: Path, settings: Mapping[str, Any]) -> None:
    """Writes a graph with `settings` as its metadata; weights of more than `MAX_BYTES` to a file beside, `_data`."""
    import onnx
    from onnx import helper

    helper.set_model_props(graph, {name: str(value) for name, value in settings.items() if value is not None})
    if num_bytes(graph) <= MAX_BYTES:
        onnx.save_model(graph, path)
        return
    beside = f"{path.name}_data"
    onnx.save_model(graph, path, save_as_external_data=True, all_tensors_to_one_file=True, location=beside)


def num_bytes(graph: Graph) -> int:
    """Of the weights."""
    return sum(len(weight.raw_data) for weight in graph.graph.initializer)


def _fold_constants(graph: Graph, whole: Path, folded: Path) -> None:
    """Saves a graph in which weights that are cut or turned before their use are constants themselves.

    torch's converter leaves that to the runtime, but only constants are quantized.
    """
    import onnxruntime

    large = num_bytes(graph) > MAX_BYTES
    copied = type(graph)()
    copied.CopyFrom(graph)  # saving moves large weights out of a graph
    save_graph(copied, whole, {})
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    if large:
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "folded.data")
    onnxruntime.InferenceSession(whole, options, providers=["CPUExecutionProvider"])


def _forget_origin(graph: Graph) -> None:
    """Removes the lines of code that every node came from, which are longer than a small model, and name folders."""
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.input, *graph.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for weight in graph.graph.initializer:
        weight.ClearField("metadata_props")
    del graph.graph.value_info[:]


def _name_axes(graph: Graph, inputs: Mapping[str, tuple[str, ...]]) -> None:
    """Gives the free axes of inputs and outputs their names, and forgets the shapes in between, which have others."""
    names: dict[str, str] = {}
    for value in graph.graph.input:
        for axis, name in zip(value.type.tensor_type.shape.dim, inputs[value.name], strict=False):
            if axis.dim_param:
                names[axis.dim_param] = name
    for value in (*graph.graph.input, *graph.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = names.get(axis.dim_param, axis.dim_param)


def _head(*, has_bias: bool) -> list[Any]:
    """From the towers' embeddings to unit length and to logits."""
    from onnx import helper

    nodes = []
    for tower, kind in (("vision", "image"), ("text", "text")):
        nodes += [
            helper.make_node("ReduceL2", [f"{tower}/{kind}_embeds", "last_axis"], [f"{kind}_length"], keepdims=1),
            helper.make_node("Max", [f"{kind}_length", "smallest_length"], [f"{kind}_divisor"]),
            helper.make_node("Div", [f"{tower}/{kind}_embeds", f"{kind}_divisor"], [f"{kind}_embeds"]),
        ]
    scaled = "scaled" if has_bias else "logits_per_image"
    return [
        *nodes,
        helper.make_node("Transpose", ["text_embeds"], ["text_columns"], perm=[1, 0]),
        helper.make_node("MatMul", ["image_embeds", "text_columns"], ["similarity"]),
        helper.make_node("Mul", ["similarity", "logit_scale"], [scaled]),
        *([helper.make_node("Add", [scaled, "logit_bias"], ["logits_per_image"])] if has_bias else []),
        helper.make_node("Transpose", ["logits_per_image"], ["logits_per_text"], perm=[1, 0]),
    ]


def _head_weights(logit_scale: float, logit_bias: float | None) -> list[Any]:
    from onnx import TensorProto, helper

    scalars = {"smallest_length": 1e-12, "logit_scale": logit_scale, "logit_bias": logit_bias}
    floats = [
        helper.make_tensor(name, TensorProto.FLOAT, [1], [value])
        for name, value in scalars.items()
        if value is not None
    ]
    return [*floats, helper.make_tensor("last_axis", TensorProto.INT64, [1], [-1])]


def _head_outputs(vision: Graph, text: Graph) -> list[Any]:
    from onnx import TensorProto, helper

    (images, dim), (texts, _) = (
        [axis.dim_param or axis.dim_value for axis in tower.graph.output[0].type.tensor_type.shape.dim]
        for tower in (vision, text)
    )
    shapes = {
        "logits_per_image": [images, texts],
        "logits_per_text": [texts, images],
        "text_embeds": [texts, dim],
        "image_embeds": [images, dim],
    }
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]


def _merged_opsets(vision: Graph, text: Graph) -> list[Any]:
    from onnx import helper

    versions = {opset.domain: opset.version for graph in (vision, text) for opset in graph.opset_import}
    return [helper.make_opsetid(domain, version) for domain, version in versions.items()]
