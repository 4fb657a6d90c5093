"""How an exported language model is used, for its model card and its ONNX file."""

from stillhouse import Model, Usage

PREPARE = """
import numpy as np
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")  # the folder of this card
prompt = "Question: 1+2\\nAnswer: Let's think step by step."
inputs = {"tokens": np.array([tokenizer(prompt)["input_ids"]], dtype=np.int64)}
"""
READ = """
token = int(outputs["logits"][0, -1].argmax())  # the likeliest next token
print(tokenizer.decode([token]))
"""


def generator_usage(spec: Model) -> Usage:  # noqa: ARG001
    """Token ids in, logits of each next token out."""
    return Usage(
        ports={
            "tokens": "token ids of the tokenizer in this folder, without padding or padded on the "
            "right",
            "logits": "of the token behind each position, over the whole vocabulary",
        },
        preprocessing={},
        prepare=PREPARE,
        read=READ,
    )
