"""SAMs taken apart, put together, and read from Meta's checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from stillhouse.artifact import Built, load_model, save_model, spec_of
from stillhouse.errors import BadData, UnknownName
from stillhouse.weights import checkpoint_file, import_checkpoint, read_state
from stillhouse.work import Work
from stillhouse_sam.models.checkpoints import described
from stillhouse_sam.models.encoders import Encoder
from stillhouse_sam.models.named import META_SHAPE, Shape, joined, named
from stillhouse_sam.models.network import DecoderRole, PromptEncoderRole, SamNetwork

Part = Literal["encoder", "prompts", "decoder"]
# what a part is called within segment-anything's Sam
INSIDE: Mapping[str, str] = {
    "encoder": "image_encoder",
    "prompts": "prompt_encoder",
    "decoder": "mask_decoder",
}
ROLES: Mapping[str, type[nn.Module]] = {
    "encoder": Encoder,
    "prompts": PromptEncoderRole,
    "decoder": DecoderRole,
}


@dataclass(frozen=True, kw_only=True)
class Split:
    """A `convert`: the part "encoder", "prompts" or "decoder" of the whole SAM at port "sam"."""

    part: Part

    def __post_init__(self) -> None:
        if self.part not in INSIDE:
            raise UnknownName("part", self.part, INSIDE)

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: Built
        out: Path,
        *,
        work: Work,
    ) -> None:
        source = inputs["sam"]
        if not isinstance(source, Built) or not isinstance(source.module, SamNetwork):
            raise BadData("sam: not a whole SAM; give one, or join its parts first")
        spec = spec_of(source.spec.kwargs[self.part])
        module = spec.new()
        net = source.module.sam.get_submodule(INSIDE[self.part])
        module.get_submodule("net").load_state_dict(net.state_dict())
        save_model(out, Built(spec=spec, module=module))


@dataclass(frozen=True, kw_only=True)
class Join:
    """A `convert`: the whole SAM of the ports "encoder", "prompts" and "decoder"."""

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: Built
        out: Path,
        *,
        work: Work,
    ) -> None:
        parts = {part: _part(inputs[part], part) for part in INSIDE}
        spec = joined(*(built.spec for built in parts.values()))
        module = spec.new()
        for part, built in parts.items():
            net = module.get_submodule(f"sam.{INSIDE[part]}")
            net.load_state_dict(built.module.get_submodule("net").state_dict())
        save_model(out, Built(spec=spec, module=module))


def _part(source: object, part: str) -> Built:
    if not isinstance(source, Built) or not isinstance(source.module, ROLES[part]):
        found = source.module if isinstance(source, Built) else source
        raise BadData(f"{part}: a {type(found).__name__}, not a {ROLES[part].__name__} of a SAM")
    return source


@dataclass(frozen=True, kw_only=True)
class LoadSam:
    """A `convert`: the port "checkpoint" as a whole SAM, `name` and `shape` as in `named`.

    The port is a checkpoint as segment_anything publishes them (.pth; read onto the CPU without
    running code in it, every tensor accounted for), or a folder with model.json, which keeps its
    own spec and must take frames and give embeddings of the same shape. Where there is a port
    "data", a SAM that is no better on it than filled boxes is refused (`check_boxes`). Raises
    BadData, with the options that read a checkpoint which does not fit.
    """

    name: str
    shape: Shape = META_SHAPE

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: Built or Path
        out: Path,
        *,
        work: Work,
    ) -> None:
        # what is tried is run by metrics, which import these models
        from stillhouse_sam.trying import check_boxes

        spec = named(self.name, shape=self.shape)
        given = inputs["checkpoint"]
        try:
            import_checkpoint(
                given, out, spec=spec, check=self._check, inside="sam", about=self.name
            )
        except BadData as error:
            if not isinstance(given, Path):
                raise
            state = read_state(checkpoint_file(given))  # raises what is wrong with a broken file
            raise BadData(f"{error}; {described(state, self.shape)}") from error
        if "data" in inputs:
            sam = load_model(out).module.eval()
            check_boxes(sam, inputs["data"], go_on="go on with --set check_teacher=false")

    def _check(self, source: Built) -> None:
        if not isinstance(source.module, SamNetwork):
            raise BadData("checkpoint: the given model is no SAM; give one that is")
        encoder = source.module.sam.prompt_encoder
        found = (source.module.img_size, encoder.image_embedding_size[0], encoder.embed_dim)
        wanted = (self.shape.size, self.shape.grid, self.shape.channels)
        if found != wanted:
            size, grid, channels = found
            raise BadData(
                f"checkpoint: the given SAM has size, grid, channels {found}, the recipe {wanted}; "
                f"run with --set size={size} --set grid={grid} --set channels={channels}"
            )
