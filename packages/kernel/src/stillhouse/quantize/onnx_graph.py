"""An ONNX graph with the operands of its ops rounded, made into one that ONNX Runtime fuses:
weights kept as int8, BatchNorm in the scales of the convolution before it, biases as int32, and
what convolutions give rounded as well.
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]  # Any: numbers of some type
Grid = tuple[Array, Array, int | None]  # scale, zero point, axis
Ranges = Mapping[str, tuple[float, float]]
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
CUTS = ("Relu", "Clip")  # joined with the rounding after them, where that cuts as they do
TOP = 255  # of uint8
LARGEST = 2.0**30  # of a bias over its scale; int32 ends at 2^31


def fold(graph: ir.Graph) -> None:
    """What needs no ranges: weights, BatchNorm."""
    for node in _nodes(graph, QUANTIZE):
        _store_weight(graph, node)
    for node in _nodes(graph, "Conv"):
        _join_norm(graph, node)
    _sweep(graph)


def store_biases(graph: ir.Graph) -> None:
    """Biases as int32, once every activation has the scale it keeps (`round_outputs`)."""
    for node in _nodes(graph, "Conv", "Gemm"):
        _store_bias(graph, node)
    _sweep(graph)


def ranged(graph: ir.Graph) -> list[str]:
    """The tensors whose ranges `round_outputs` may read."""
    found = [node.outputs[0] for node in _nodes(graph, "Conv", "Gemm", "Add", *CUTS)]
    return [_name(value) for value in found if value.dtype in (None, ir.DataType.FLOAT)]


def round_outputs(graph: ir.Graph, ranges: Ranges) -> None:
    """Round what each convolution of rounded operands gives, after a ReLU or clipping where one
    follows, and so the sums of two rounded tensors.

    Where an op reads the tensor, its own scale is taken (of several the widest), and all
    others read the same; else 255 levels cover the range measured. What other layers give is
    rounded only where a ReLU follows, with which ONNX Runtime would else join them as floats.
    """
    for node in _nodes(graph, "Conv", "Gemm", "Add"):
        rounded = all(_maker(value, DEQUANTIZE) for value in node.inputs[:2])
        if rounded and (node.op_type != "Gemm" or _only(node.outputs[0], *CUTS)):
            _round(graph, node, ranges)
    graph.sort()
    _sweep(graph)


def rounded_ops(graph: ir.Graph) -> int:
    """How many ops there are of two rounded operands."""
    found = _nodes(graph, "Conv", "MatMul", "Gemm")
    return sum(all(_maker(value, DEQUANTIZE) for value in node.inputs[:2]) for node in found)


def rounding(node: ir.Node) -> Grid | None:
    """Scale, zero point and axis (None: one scale) of a QuantizeLinear or DequantizeLinear; None
    where they are not constant.
    """
    scale, zero = (_constant(value) for value in node.inputs[1:3])
    if scale is None or zero is None:
        return None
    return scale, zero, node.attributes.get_int("axis", 1) if scale.ndim else None


def _store_weight(graph: ir.Graph, node: ir.Node) -> None:
    """The numbers of a constant on their grid instead of its QuantizeLinear, in the order of axes
    in which they are read.
    """
    weight, found = _constant(node.inputs[0]), rounding(node)
    if weight is None or found is None:
        return
    scale, zero, axis = found
    types = np.iinfo(zero.dtype)
    whole = np.rint(weight / _along(scale, axis, weight.ndim)) + _along(zero, axis, weight.ndim)
    whole = whole.clip(types.min, types.max).astype(zero.dtype)
    back = _only(node.outputs[0], DEQUANTIZE)
    assert back is not None
    turn = _only(back.outputs[0], "Transpose")
    if turn is not None and axis is None:
        order = turn.attributes["perm"].as_ints()
        turn.outputs[0].replace_all_uses_with(back.outputs[0])
        graph.remove(turn, safe=True)
        whole = np.ascontiguousarray(whole.transpose(order))
        back.outputs[0].shape = ir.Shape(whole.shape)
    back.replace_input_with(0, _kept(graph, whole, f"{_name(node.inputs[0])}_{zero.dtype}"))
    graph.remove(node, safe=True)


def _join_norm(graph: ir.Graph, conv: ir.Node) -> None:
    """BatchNorm multiplies the scales of the weights before it, and moves the bias.

    Where it multiplies by a negative number the weights change their sign, and -128 becomes 127.
    """
    norm, back = _only(conv.outputs[0], "BatchNormalization"), _maker(conv.inputs[1], DEQUANTIZE)
    if norm is None or back is None:
        return
    weight, found = _constant(back.inputs[0]), rounding(back)
    constants = [_constant(value) for value in norm.inputs[1:5]]
    bias = _bias(conv)
    if weight is None or found is None or bias is None or any(one is None for one in constants):
        return
    gain, shift, mean, variance = cast("list[Array]", constants)
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    factor = (gain / np.sqrt(variance + epsilon)).astype(np.float32)
    sign = _along(np.sign(factor).astype(np.int16), 0, weight.ndim)
    whole = (weight.astype(np.int16) * sign).clip(-128, 127).astype(np.int8)
    scale = np.where(factor == 0, 1, found[0] * np.abs(factor)).astype(np.float32)
    back.replace_input_with(0, _kept(graph, whole, f"{_name(back.inputs[0])}_normed"))
    back.replace_input_with(1, _kept(graph, scale, f"{_name(back.inputs[0])}_scale"))
    conv.resize_inputs(3)
    moved = (shift + (bias - mean) * factor).astype(np.float32)
    conv.replace_input_with(2, _kept(graph, moved, f"{_name(back.inputs[0])}_bias"))
    _instead(norm.outputs[0], conv.outputs[0])
    graph.remove(norm, safe=True)


def _store_bias(graph: ir.Graph, node: ir.Node) -> None:
    """A bias with the scale of activation times weight, as the sums are that it is added to.

    Where a bias is too large for that (weights all near zero) the weights take larger scales.
    """
    x, back = (_maker(value, DEQUANTIZE) for value in node.inputs[:2])
    bias = _bias(node)
    if x is None or back is None or bias is None or len(node.inputs) < 3:
        return
    outer, found = rounding(x), rounding(back)
    weight = _constant(back.inputs[0])
    if outer is None or found is None or weight is None:
        return
    scale, zero, axis = found
    least = np.abs(bias) / (outer[0] * LARGEST)
    larger = np.maximum(scale, least if axis is not None else least.max()).astype(np.float32)
    name = _name(node.inputs[2])
    if (larger > scale).any():
        whole = np.rint(weight * _along(scale / larger, axis, weight.ndim)).astype(zero.dtype)
        back.replace_input_with(0, _kept(graph, whole, f"{name}_weight"))
        back.replace_input_with(1, _kept(graph, larger, f"{name}_weight_scale"))
    both = (larger * outer[0]).astype(np.float32)
    stored = np.rint(bias / both).astype(np.int32)
    given = [_kept(graph, stored, f"{name}_int32"), _kept(graph, both, f"{name}_scale")]
    made = ir.node(DEQUANTIZE, given, {"axis": 0} if both.ndim else None)
    graph.insert_before(node, made)
    node.replace_input_with(2, made.outputs[0])


def _round(graph: ir.Graph, node: ir.Node, ranges: Ranges) -> None:
    value = node.outputs[0]
    cut = _only(value, *CUTS)
    if cut is not None:
        value = cut.outputs[0]
    readers = [one for one in value.consumers() if one.op_type == QUANTIZE]
    fitting = [
        (found[0].max(), one)
        for one in readers
        if (found := rounding(one)) is not None
        and found[1].dtype == np.uint8
        and (cut is None or _fits(graph, one, found, cut))
    ]
    chosen = max(fitting, key=lambda one: one[0])[1] if fitting else _rounded(graph, value, ranges)
    back = _only(chosen.outputs[0], DEQUANTIZE)
    assert back is not None
    _instead(value, back.outputs[0])
    chosen.replace_input_with(0, value)


def _fits(graph: ir.Graph, node: ir.Node, found: Grid, cut: ir.Node) -> bool:
    """Whether a rounding alone leaves what a ReLU or clipping before it leaves: it is moved to
    begin at zero, and one that reaches higher gets the smaller scale that reaches just as high.
    """
    scale, zero, _ = found
    ends = [_constant(value) for value in cut.inputs[1:3]]
    low, high = (None if end is None else float(end) for end in (*ends, None, None)[:2])
    if cut.op_type != "Relu" and low != 0:
        return False
    if zero != 0 or (high is not None and TOP * scale > high):
        largest = scale if high is None else np.minimum(scale, np.float32(high / TOP))
        back = _only(node.outputs[0], DEQUANTIZE)
        assert back is not None
        name = _name(cut.outputs[0])
        for index, value in ((1, largest), (2, np.uint8(0))):
            kept = _kept(graph, value, f"{name}_reader")
            node.replace_input_with(index, kept)
            back.replace_input_with(index, kept)
    return True


def _rounded(graph: ir.Graph, value: ir.Value, ranges: Ranges) -> ir.Node:
    """A tensor on 255 levels from its smallest number to its largest: the new QuantizeLinear."""
    low, high = ranges[_name(value)]
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low or 1.0) / TOP
    constants = [
        _kept(graph, np.float32(scale), f"{_name(value)}_scale"),
        _kept(graph, np.uint8(round(-low / scale)), f"{_name(value)}_zero"),
    ]
    first = ir.node(QUANTIZE, [value, *constants])
    second = ir.node(DEQUANTIZE, [first.outputs[0], *constants])
    maker = value.producer()
    assert maker is not None
    graph.insert_after(maker, (first, second))
    return first


def _sweep(graph: ir.Graph) -> None:
    """Constants that nothing reads any more are left out."""
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]


def _instead(old: ir.Value, new: ir.Value) -> None:
    """Whoever reads `old` reads `new`; a result of the graph keeps its name."""
    if old.is_graph_output():
        name, new.type, new.shape = old.name, old.type, old.shape
        old.name, new.name = f"{name}_before", name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _kept(graph: ir.Graph, array: Any, name: str) -> ir.Value:  # Any: an array or a number of numpy
    """A new initializer, of a name of its own."""
    taken, count = name, 1
    while taken in graph.initializers:
        count += 1
        taken = f"{name}_{count}"
    value = ir.val(taken, const_value=ir.tensor(np.asarray(array), name=taken))
    graph.register_initializer(value)
    return value


def _nodes(graph: ir.Graph, *kinds: str) -> list[ir.Node]:
    return [node for node in graph if node.op_type in kinds]


def _name(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name is not None
    return value.name


def _only(value: ir.Value, *kinds: str) -> ir.Node | None:
    """The one node that reads a tensor, if it is of these types and nothing else needs that."""
    readers = value.uses()
    if len(readers) != 1 or value.is_graph_output():
        return None
    node = next(iter(readers)).node
    return node if node.op_type in kinds else None


def _maker(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node that gives a tensor, if it is of this type."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind else None


def _constant(value: ir.Value | None) -> Array | None:
    tensor = None if value is None or not value.is_initializer() else value.const_value
    return None if tensor is None else tensor.numpy()


def _bias(node: ir.Node) -> Array | None:
    """Of a convolution or Gemm: zeros where it has none, None where it is no constant."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return _constant(node.inputs[2])
    return np.zeros((), np.float32)


def _along(array: Array, axis: int | None, dimensions: int) -> Array:
    """A vector along one axis of many; a number as it is."""
    if axis is None:
        return array
    return array.reshape([-1 if i == axis else 1 for i in range(dimensions)])
