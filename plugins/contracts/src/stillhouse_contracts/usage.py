"""How an exported detector is used, for its model card and its ONNX file."""

from stillhouse import Model, Usage
from stillhouse.errors import BadData
from stillhouse_contracts.tokens import VOCABULARY

PREPARE = """
import numpy as np

from stillhouse_contracts.excerpts import rows_of_tokens

code = "function pay(uint a) public { msg.sender.call{value: a}(''); balances[msg.sender] = 0; }"
inputs = {"tokens": rows_of_tokens([code], use["preprocessing"]["length"])}
"""
READ = """
shares = 1 / (1 + np.exp(-outputs["logits"][0]))
for name, share in zip(use["classes"], shares):
    print(name, round(float(share), 3))
"""


def detected_by(spec: Model) -> tuple[tuple[str, ...], int] | None:
    """The types and the length of texts of a model, by its spec or by that of the network it was
    converted from; None for what is no detector of this domain.
    """
    kwargs = spec.kwargs.get("source", {}).get("kwargs", spec.kwargs)
    if "types" not in kwargs or "length" not in kwargs:
        return None
    return tuple(kwargs["types"]), int(kwargs["length"])


def detector_usage(spec: Model) -> Usage:
    """A function's tokens in, a logit a type out; raises BadData for another model."""
    found = detected_by(spec)
    if found is None:
        raise BadData(f"{spec.build.__qualname__}: no detector of vulnerabilities in contracts")
    types, length = found
    return Usage(
        ports={
            "tokens": "a function's normalised tokens, places in the vocabulary; 0 behind its end",
            "logits": "one a type; its sigmoid is the probability that the function has it",
        },
        classes=types,
        preprocessing={"length": length, "vocabulary": list(VOCABULARY)},
        prepare=PREPARE,
        read=READ,
    )
