"""How an exported text classifier is used, for its model card and its ONNX file."""

from stillhouse import Model, Usage

PREPARE = """
import numpy as np
from tokenizers import Tokenizer  # pip install tokenizers

tokenizer = Tokenizer.from_file("tokenizer.json")
ids = tokenizer.encode("a charming and often affecting journey").ids
inputs = {"tokens": np.array([ids]), "mask": np.ones((1, len(ids)), dtype=np.int64)}
"""
READ = """
logits = outputs["logits"][0]
shares = np.exp(logits - logits.max())
for name, share in zip(use["classes"], shares / shares.sum()):
    print(name, round(float(share), 3))
"""


def classifier_usage(spec: Model) -> Usage:
    """A text in, its classes out."""
    names = tuple(spec.kwargs["names"])
    return Usage(
        ports={
            "tokens": "ids of the tokenizer's tokens, its special ones included; padding behind",
            "mask": "1 where there is a token, 0 at padding",
            "logits": f"of {len(names)} classes, before the softmax",
        },
        classes=names,
        preprocessing={
            "tokenizer": "tokenizer.json",
            "context": int(spec.kwargs["architecture"]["positions"]),
        },
        prepare=PREPARE,
        read=READ,
    )
