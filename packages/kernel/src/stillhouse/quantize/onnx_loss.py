"""Where an int8 file departs from its float file, tensor by tensor."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.leftovers import temporary
from stillhouse.quantize.onnx_network import OnnxNetwork, session

Arrays = Mapping[str, Any]  # Any: numpy arrays by the name of an input


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A tensor of the network, and its signal-to-quantization-noise ratio in decibels: 20 times the
    decimal logarithm of the norm in floats over that of what int8 changes. 20 dB are an error of a
    tenth, 40 dB of a hundredth.
    """

    tensor: str
    decibels: float


def losses(
    floats: OnnxNetwork, int8: OnnxNetwork, batches: Sequence[Arrays]
) -> tuple[tuple[Loss, ...], tuple[Loss, ...]]:
    """The rounded tensors in the order of the graph, and the outputs, of an int8 file in QDQ form
    beside the float file that it was made from, over all batches, by ONNX Runtime's own comparison.
    """
    from onnxruntime.quantization import qdq_loss_debug as debug

    with temporary() as folder:
        kept = {name: _kept(each, folder / name, batches) for name, each in _two(floats, int8)}
    matched = debug.create_activation_matching(kept["int8"], kept["floats"])
    whole = {name: each for name, each in matched.items() if "float" in each}
    found = debug.compute_activation_error(whole)
    order = [name for name in kept["floats"] if name in found]
    inner = tuple(Loss(tensor=n, decibels=found[n]["xmodel_err"]) for n in order)
    outputs = {name: _outputs(each, batches) for name, each in _two(floats, int8)}
    ratio = debug.compute_signal_to_quantization_noice_ratio
    outer = tuple(
        Loss(tensor=name, decibels=ratio(outputs["floats"][name], outputs["int8"][name]))
        for name in floats.outputs
    )
    return inner, outer


def _two(floats: OnnxNetwork, int8: OnnxNetwork) -> Iterator[tuple[str, OnnxNetwork]]:
    yield "floats", floats
    yield "int8", int8


def _content(network: OnnxNetwork) -> bytes:
    return network.file.cpu().numpy().tobytes()


def _kept(
    network: OnnxNetwork, folder: Path, batches: Sequence[Arrays]
) -> dict[str, Any]:  # Any: numpy arrays, one a batch
    """What each tensor of a file is, by its name, in the order of the graph."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, qdq_loss_debug
    from onnxruntime.quantization.shape_inference import quant_pre_process

    waiting = list(batches)

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:  # Any: as the base class has it
            return dict(waiting.pop(0)) if waiting else None

    folder.mkdir()
    plain, ready, watched = (folder / f"{name}.onnx" for name in ("a", "b", "c"))
    plain.write_bytes(_content(network))
    # as the int8 file was made: BatchNorm folded, so that both have the same tensors
    quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    qdq_loss_debug.modify_model_output_intermediate_tensors(str(ready), str(watched))
    found = qdq_loss_debug.collect_activations(str(watched), Reader())
    # ONNX Runtime lists them by a set, in an order of each process's own
    graph = onnx.load(str(ready)).graph
    made = (name for node in graph.node for name in node.output)
    order = [*(each.name for each in graph.input), *made]
    return {name: found[name] for name in order if name in found}


def _outputs(network: OnnxNetwork, batches: Sequence[Arrays]) -> Mapping[str, list[Any]]:
    """The outputs of all batches, by name; Any: numpy arrays."""
    opened, names = session(_content(network)), list(network.outputs)
    runs = [opened.run(names, dict(batch)) for batch in batches]
    return {name: [run[i] for run in runs] for i, name in enumerate(names)}
