"""A causal language model of transformers under the kernel's contract, plain or with adapters.

B: sequences. S: tokens of the longest. T: tokens of all, packed one sequence after another. V:
vocabulary. D: width of the hidden states.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from stillhouse.artifact import Model
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.chunked import Head
from stillhouse_language.causal.ragged import padded

TOKENS = "tokens"
# what `config` may hold of a stored model and is not read from it: code, files, devices
LEFT_OUT = ("auto_map", "quantization_config", "_name_or_path", "torch_dtype", "dtype")
ATTENTION = "sdpa"


class Outputs(Mapping[str, Tensor]):
    """Named outputs; "logits" are computed on access."""

    def __init__(self, known: Mapping[str, Tensor], logits: Callable[[], Tensor]) -> None:
        self._known, self._logits = dict(known), logits

    def __getitem__(self, name: str) -> Tensor:
        if name == "logits" and name not in self._known:
            self._known[name] = self._logits()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._known, "logits"]))

    def __len__(self) -> int:
        return len([*iter(self)])


class CausalLM(nn.Module):
    """A causal language model: "tokens" in; "hidden", "head" and "logits" out.

    `tokens` are [B, S] with any padding on the right, whose outputs mean nothing, or packed [T]
    with `tokens_offsets` [B + 1]: then `hidden` and `logits` are packed alike. "hidden" goes into
    the head, whose weight is "head" [V, D]: the kernel's lm_* losses read both. Parameters have the
    names that transformers gives them, so that the saved folder is one of transformers' as well.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # not registered: its children are, under their own names
        object.__setattr__(self, "_held", (network,))
        for name, child in network.named_children():
            self.add_module(name, child)

    @property
    def network(self) -> Any:  # Any: a PreTrainedModel; transformers gives its parts no types
        """The model as transformers has it."""
        return cast("tuple[Any]", self._held)[0]

    @property
    def config(self) -> Any:  # Any: a PretrainedConfig of transformers
        return self.network.config

    @property
    def context(self) -> int:
        """The most tokens that a sequence may have."""
        return int(getattr(self.config, "max_position_embeddings", 1 << 30))

    def hidden(self, tokens: Tensor) -> Tensor:
        """[B, S, D] of tokens [B, S], padded on the right: what comes before does not see it."""
        found = self.network.base_model(input_ids=tokens, use_cache=False)
        return found.last_hidden_state

    @property
    def head(self) -> Head:
        """The head without its hidden states."""
        layer = self.network.get_output_embeddings()
        return Head(
            hidden=layer.weight[:0],
            weight=layer.weight,
            scale=float(getattr(self.config, "logit_scale", None) or 1.0),
            softcap=getattr(self.config, "final_logit_softcapping", None),
        )

    def forward(self, batch: Mapping[str, Tensor]) -> Outputs:
        tokens, offsets = batch[TOKENS], batch.get(f"{TOKENS}_offsets")
        if offsets is None:
            hidden = self.hidden(tokens.long())
        else:
            rows, real = padded(tokens.long(), offsets)
            hidden = self.hidden(rows)[real]
        head = self.head
        whole = Head(hidden=hidden, weight=head.weight, scale=head.scale, softcap=head.softcap)
        return Outputs({"hidden": hidden, "head": head.weight}, whole.logits)


class AdaptedLM(CausalLM):
    """A causal language model with low-rank adapters of peft in its linear layers."""

    def base_names(self) -> Mapping[str, str]:
        """Of each tensor of the base in it: its name here, and in the base."""
        state = self.state_dict()
        return {name: _base_name(name) for name in state if "lora_" not in name}


def _base_name(name: str) -> str:
    return name.replace(".base_layer.", ".")


Dtype = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def causal_lm(
    config: Mapping[str, Any],  # Any: JSON values
    dtype: Dtype = "float32",
) -> CausalLM:
    """A fresh model of a transformers configuration with its "model_type"; no code of a repository
    is run. Raises BadSetting for one that makes no causal language model.
    """
    return CausalLM(_network(config, dtype))


def adapted_lm(
    config: Mapping[str, Any],  # Any: JSON values
    rank: int,
    alpha: float,
    targets: list[str],
    dtype: Dtype = "float32",
) -> AdaptedLM:
    """`causal_lm` with LoRA (Hu et al. 2021, arXiv 2106.09685) of `rank`, scaled by alpha / rank,
    in the linear layers whose names end in one of `targets` ("all-linear": all but the head).
    Raises BadSetting where there are none.
    """
    from peft import LoraConfig, inject_adapter_in_model

    network = _network(config, dtype)
    wanted: Any = "all-linear" if targets == ["all-linear"] else targets
    if isinstance(wanted, str):
        wanted = sorted({name.rpartition(".")[2] for name in linear_layers(network)})
    # GPT-2 stores its matrices the other way round
    turned = any(isinstance(module, _conv1d()) for module in network.modules())
    lora = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  a fraction may be one
        target_modules=wanted,
        lora_dropout=0.0,
        fan_in_fan_out=turned,
    )
    try:
        inject_adapter_in_model(lora, network)
    except ValueError as error:
        raise BadSetting(f"adapters: {str(error).splitlines()[0]}") from error
    return AdaptedLM(network)


def linear_layers(network: nn.Module) -> list[str]:
    """The names of all linear layers but the head, as "all-linear" means it; raises BadSetting for
    none.
    """
    head = network.get_output_embeddings()  # pyright: ignore[reportCallIssue]  of transformers
    kinds = (nn.Linear, _conv1d())
    found = [n for n, m in network.named_modules() if isinstance(m, kinds) and m is not head]
    if not found:
        raise BadSetting("adapters: the model has no linear layers")
    return found


def _conv1d() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D

    return Conv1D


def merged(model: CausalLM) -> CausalLM:
    """The model with its adapters added to the weights: W + (alpha / rank) B A, no adapters left.
    The model given is not good for anything else afterwards.
    """
    from peft.tuners.lora import LoraLayer

    network = model.network
    for name, layer in [*network.named_modules()]:
        if isinstance(layer, LoraLayer):
            layer.merge()  # pyright: ignore[reportCallIssue]  of its subclasses
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, layer.get_base_layer())
    return CausalLM(network)


def adapted(spec: Model, *, rank: int, alpha: float, targets: tuple[str, ...]) -> Model:
    """The spec of a model with adapters, from that of its base."""
    kwargs = {**spec.kwargs, "rank": rank, "alpha": alpha, "targets": [*targets]}
    return Model(build=adapted_lm, kwargs=kwargs)


def head_of(model: nn.Module, outputs: Mapping[str, Tensor]) -> Head:
    """Logits that are not computed yet, of what `CausalLM` gave; raises BadData for another
    model.
    """
    if not isinstance(model, CausalLM):
        raise BadData(f"{type(model).__name__}: no causal language model of this plugin")
    head = model.head
    return Head(
        hidden=outputs["hidden"], weight=outputs["head"], scale=head.scale, softcap=head.softcap
    )


def _network(config: Mapping[str, Any], dtype: Dtype) -> Any:  # Any: as above; a PreTrainedModel
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = str(config.get("model_type"))
    kept = {k: v for k, v in config.items() if k not in (*LEFT_OUT, "model_type")}
    try:
        read = AutoConfig.for_model(kind, **kept)
        return AutoModelForCausalLM.from_config(
            read, attn_implementation=ATTENTION, dtype=DTYPES[dtype], trust_remote_code=False
        )
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise BadSetting(f"'{kind}' makes no causal language model: {reason}") from error


def config_of(network: Any) -> dict[str, Any]:  # Any: a PreTrainedModel; JSON values
    """The configuration that `causal_lm` takes, as JSON values."""
    import json

    found: dict[str, Any] = json.loads(network.config.to_json_string(use_diff=True))
    kept = {k: v for k, v in found.items() if k not in LEFT_OUT}
    kept.pop("transformers_version", None)
    return {"model_type": network.config.model_type, **kept}
