"""A SAM's exported folder: a decoder for ONNX Runtime, and what opens it in torch alone."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Generator, nn

from stillhouse.artifact import Built, spec_of
from stillhouse.card import add_metadata
from stillhouse.errors import BadData, ContractError
from stillhouse.export import Export, check_onnx, sample
from stillhouse.objectives.inputs import named
from stillhouse.quantize.onnx_network import ONNX
from stillhouse.work import Work
from stillhouse_sam import load_sam
from stillhouse_sam.models import SamNetwork
from stillhouse_sam.models.encoders import MEAN, STD
from stillhouse_sam.models.network import Decoder

DECODER, LOADER, CARD = "decoder.onnx", "load_sam.py", "README.md"
PROMPTS = ("point_coords", "point_labels")
ANSWERS = ("logits", "iou")


@dataclass(frozen=True, kw_only=True)
class ExportSam:
    """A `convert`: what `export` writes of a whole SAM, and beside it decoder.onnx and load_sam.py.

    decoder.onnx (embedding, point_coords, point_labels -> logits, iou) answers further prompts on
    an image that model.onnx or model-int8.onnx has embedded. load_sam.py opens the weights as a
    stock Sam with torch and segment_anything alone; an image encoder that is none of
    segment_anything's is written for it as image_encoder.pt2, by torch.export. The card and
    export.json say which it is. Raises BadData for what is no whole SAM, ContractError where a file
    and torch differ.
    """

    export: Export

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: Built and Data
        out: Path,
        *,
        work: Work,
    ) -> None:
        built: Built = named(inputs, self.export.role, what="port", where="export")
        if not isinstance(built.module, SamNetwork):
            name = type(built.module).__name__
            raise BadData(f"export: a {name}, not a whole SAM; join its parts first")
        self.export(inputs, out, work=work)
        self._write_decoder(built.module, inputs["data"], out / DECODER)
        write_loader(built, out, tolerance=self.export.tolerance)

    def _write_decoder(self, network: SamNetwork, data: Any, file: Path) -> None:  # Any: Data
        export = self.export
        batch = sample(data, export.samples, export.inputs)
        with torch.no_grad():
            embedding = network.eval()(dict(batch))["embedding"]
        prompted = {"embedding": embedding, **{name: batch[name] for name in PROMPTS}}
        given, axes = (Decoder(network.sam), prompted, ANSWERS), export.dynamic
        cut_decoder(file.with_name(ONNX), file)
        check_onnx(file, *given, tolerance=export.tolerance, dynamic=axes)
        whole = json.loads((file.parent / load_sam.RECORD).read_text())
        ports = {**whole["inputs"], **whole["outputs"]}
        record = {"task": whole["task"], "inputs": {n: ports[n] for n in prompted}}
        add_metadata(file, record | {"outputs": {n: ports[n] for n in ANSWERS}})


def cut_decoder(whole: Path, file: Path) -> None:
    """Write the part of a SAM's ONNX file behind its embedding as a separate file."""
    import onnx
    from onnx.utils import Extractor

    model = onnx.load(str(whole))
    for node in model.graph.node:
        # the exporter reads the number of images off the first input that has it
        if node.op_type == "Shape" and node.input[0] == "images" and _is_batch(node):
            node.input[0] = "embedding"
    part = Extractor(model).extract_model(["embedding", *PROMPTS], list(ANSWERS))
    onnx.checker.check_model(part)
    file.write_bytes(part.SerializeToString(deterministic=True))


def _is_batch(node: Any) -> bool:  # Any: onnx has no types; a Shape node
    ends = {attribute.name: attribute.i for attribute in node.attribute}
    return (ends.get("start", 0), ends.get("end")) == (0, 1)


def write_loader(built: Built, out: Path, *, tolerance: float) -> None:
    """Add to an exported SAM's folder what opens it without Stillhouse, and say so in export.json
    and the card.
    """
    assert isinstance(built.module, SamNetwork)
    net, size = _encoder(built.module), built.module.img_size
    files, kind = {"decoder": DECODER, "loader": LOADER}, OWN
    if not isinstance(net, ImageEncoderViT):
        write_encoder(net, out / load_sam.ENCODER, size=size, tolerance=tolerance)
        files["image_encoder"], kind = load_sam.ENCODER, OTHER.format(torch=torch.__version__)
    (out / LOADER).write_bytes(Path(load_sam.__file__).read_bytes())
    file, card = out / load_sam.RECORD, out / CARD
    record = json.loads(file.read_text()) | {"sam": sam_record(built), "files": files}
    file.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    if card.is_file():
        card.write_text(card.read_text() + ALONE.format(encoder=kind))


def write_encoder(net: nn.Module, path: Path, *, size: int, tolerance: float) -> None:
    """An image encoder as a torch.export file that needs no code but torch's: frames [B, 3, S, S],
    of any B, to embeddings [B, C, G, G]. Raises ContractError where it differs from the module.
    """
    frames = torch.randn(2, 3, size, size, generator=Generator().manual_seed(0))
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net.eval(), (frames,), dynamic_shapes=batch)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this machine
    torch.export.save(program, path)
    opened: Any = torch.export.load(path).module()
    with torch.no_grad():
        difference = (opened(frames[:1]) - net(frames[:1])).abs().max().item()
    if not difference <= tolerance:
        raise ContractError(
            f"{path.name} differs from the encoder by {difference:.2e} (allowed: {tolerance:.0e})"
        )


def sam_record(built: Built) -> dict[str, Any]:  # Any: JSON values
    """What load_sam.py builds the SAM of: arguments of segment_anything's classes."""
    encoder, prompts, decoder = (
        _arguments(built.spec.kwargs[part]) for part in ("encoder", "prompts", "decoder")
    )
    assert isinstance(built.module, SamNetwork)
    net = _encoder(built.module)
    channels, size, grid = prompts["channels"], prompts["size"], prompts["grid"]
    return {
        "image_encoder": _vit(encoder) if isinstance(net, ImageEncoderViT) else {"img_size": size},
        "prompt_encoder": {
            "embed_dim": channels,
            "image_embedding_size": [grid, grid],
            "input_image_size": [size, size],
            "mask_in_chans": prompts["inside"],
        },
        "transformer": {
            "depth": decoder["depth"],
            "embedding_dim": channels,
            "num_heads": decoder["heads"],
            "mlp_dim": decoder["mlp"],
        },
        "mask_decoder": {
            "transformer_dim": channels,
            "num_multimask_outputs": 3,
            "iou_head_depth": 3,
            "iou_head_hidden_dim": decoder["iou_width"],
        },
        "pixel_mean": list(MEAN),
        "pixel_std": list(STD),
    }


def _encoder(network: SamNetwork) -> nn.Module:
    """Annotated as segment_anything's, which it need not be."""
    return network.sam.image_encoder


def _vit(kwargs: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON values
    """`vit_encoder`'s arguments as ImageEncoderViT's."""
    return {
        "img_size": kwargs["size"],
        "patch_size": kwargs["patch"],
        "embed_dim": kwargs["width"],
        "depth": kwargs["depth"],
        "num_heads": kwargs["heads"],
        "mlp_ratio": kwargs["mlp"],
        "out_chans": kwargs["channels"],
        "use_rel_pos": True,
        "window_size": kwargs["window"],
        "global_attn_indexes": list(kwargs["everywhere"]),
    }


def _arguments(record: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON values
    """All arguments with which a recorded part was built, those by default too."""
    spec = spec_of(record)
    bound = inspect.signature(spec.build).bind(**spec.kwargs)
    bound.apply_defaults()
    return bound.arguments


OWN = "The image encoder is segment_anything's ImageEncoderViT, of the numbers in export.json."
OTHER = f"""The image encoder is none of segment_anything's: its registry cannot build it. Network
and weights are in {load_sam.ENCODER}, by torch.export of torch {{torch}}; it cannot train."""
ALONE = f"""
## Without Stillhouse

{{encoder}} `pip install torch safetensors segment-anything`, then in this folder:

```python
from load_sam import load_sam
from segment_anything import SamPredictor

predictor = SamPredictor(load_sam())
```

{DECODER} answers further prompts on an image that was embedded: it takes `embedding`, an output of
the other ONNX files, with further `point_coords` and `point_labels`, and gives `logits` and `iou`.
"""
