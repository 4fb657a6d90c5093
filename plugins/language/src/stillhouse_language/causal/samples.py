"""A small language model with a tokenizer of words and digits, for tests and examples."""

from pathlib import Path
from typing import Any

import torch

from stillhouse.artifact import Built, Model
from stillhouse_language.arte.vocabulary import word_tokenizer
from stillhouse_language.causal.loading import tokenizer_files
from stillhouse_language.causal.model import CausalLM, causal_lm
from stillhouse_language.causal.tokens import ASSET, Tokenizer


def tokenizer() -> Tokenizer:
    return word_tokenizer([" the cat sat on a mat Question Answer step by Let's think"])


def config(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer().inner),
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer().end,
    } | changes


def model(seed: int = 0, **changes: Any) -> CausalLM:
    torch.manual_seed(seed)
    # wide weights: a fresh model of narrow ones gives every token the same probability
    return causal_lm(config(**{"initializer_range": 0.3} | changes)).eval()


def built(folder: Path, **changes: Any) -> Built:
    files = tokenizer_files(tokenizer(), folder)
    spec = Model(build=causal_lm, kwargs={"config": config(**changes)})
    return Built(spec=spec, module=model(**changes), assets={ASSET: files})
