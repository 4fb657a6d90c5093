"""Objectives: losses as functions, terms that say what a loss reads, and what trains by them.

`from stillhouse.objectives import Term, kd_loss`: the names below are imported when they are first
used, so that a module of this package is as light as it is by itself.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.objectives.catalogue import (
        DISTILLATION_METHODS,
        distillation_method,
    )
    from stillhouse.objectives.chunked import (
        Head,
        chunked,
    )
    from stillhouse.objectives.contrastive import (
        crd_loss,
        crd_sides_loss,
        info_nce_loss,
    )
    from stillhouse.objectives.declared import (
        Count,
        Fraction,
        NotNegative,
        NotPositive,
        Positive,
        SampleMean,
        Share,
        check_declared,
    )
    from stillhouse.objectives.features import (
        at_loss,
        at_stages_loss,
        hcl_loss,
        hint_loss,
        mgd_loss,
        ofd_loss,
        ofd_stages_loss,
        reviewkd_loss,
    )
    from stillhouse.objectives.language import (
        lm_cross_entropy_loss,
        lm_kd_loss,
        lm_sampled_kd_loss,
        lm_sparse_kd_loss,
    )
    from stillhouse.objectives.limits import Range
    from stillhouse.objectives.logits import (
        dist_loss,
        dkd_loss,
        kd_loss,
        standardized,
    )
    from stillhouse.objectives.objective import (
        Composed,
        Constant,
        Cosine,
        Objective,
        Optimizer,
        Phase,
        Step,
        Weighted,
    )
    from stillhouse.objectives.relations import (
        cc_loss,
        diswot_relation_loss,
        diswot_semantic_loss,
        ickd_loss,
        pkt_loss,
        rkd_angle_loss,
        rkd_distance_loss,
        sp_loss,
    )
    from stillhouse.objectives.sparse import (
        fused_kd_loss,
        sampled_kd_loss,
        sparse_kd_loss,
    )
    from stillhouse.objectives.statistics import (
        kdsvd_loss,
        nst_loss,
    )
    from stillhouse.objectives.supervised import (
        cross_entropy_loss,
        role_loss,
    )
    from stillhouse.objectives.term import (
        Term,
    )

# module -> its public names; the same as above, which is what type checkers read
_NAMES = {
    "chunked": ("Head", "chunked"),
    "contrastive": (
        "crd_loss",
        "crd_sides_loss",
        "info_nce_loss",
    ),
    "declared": (
        "Count",
        "Fraction",
        "NotNegative",
        "NotPositive",
        "Positive",
        "SampleMean",
        "Share",
        "check_declared",
    ),
    "features": (
        "at_loss",
        "at_stages_loss",
        "hcl_loss",
        "hint_loss",
        "mgd_loss",
        "ofd_loss",
        "ofd_stages_loss",
        "reviewkd_loss",
    ),
    "language": (
        "lm_cross_entropy_loss",
        "lm_kd_loss",
        "lm_sampled_kd_loss",
        "lm_sparse_kd_loss",
    ),
    "limits": ("Range",),
    "logits": (
        "dist_loss",
        "dkd_loss",
        "kd_loss",
        "standardized",
    ),
    "objective": (
        "Composed",
        "Constant",
        "Cosine",
        "Objective",
        "Optimizer",
        "Phase",
        "Step",
        "Weighted",
    ),
    "relations": (
        "cc_loss",
        "diswot_relation_loss",
        "diswot_semantic_loss",
        "ickd_loss",
        "pkt_loss",
        "rkd_angle_loss",
        "rkd_distance_loss",
        "sp_loss",
    ),
    "sparse": (
        "fused_kd_loss",
        "sampled_kd_loss",
        "sparse_kd_loss",
    ),
    "statistics": (
        "kdsvd_loss",
        "nst_loss",
    ),
    "supervised": (
        "cross_entropy_loss",
        "role_loss",
    ),
    "term": ("Term",),
    "catalogue": (
        "DISTILLATION_METHODS",
        "distillation_method",
    ),
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "DISTILLATION_METHODS", "Composed", "Constant", "Cosine", "Count", "Fraction", "Head",
    "NotNegative", "NotPositive", "Objective", "Optimizer", "Phase", "Positive", "Range",
    "SampleMean", "Share", "Step", "Term", "Weighted", "at_loss", "at_stages_loss", "cc_loss",
    "check_declared", "chunked", "crd_loss", "crd_sides_loss", "cross_entropy_loss",
    "dist_loss", "distillation_method", "diswot_relation_loss", "diswot_semantic_loss",
    "dkd_loss", "fused_kd_loss", "hcl_loss", "hint_loss", "ickd_loss", "info_nce_loss",
    "kd_loss", "kdsvd_loss", "lm_cross_entropy_loss", "lm_kd_loss", "lm_sampled_kd_loss",
    "lm_sparse_kd_loss", "mgd_loss", "nst_loss", "ofd_loss", "ofd_stages_loss", "pkt_loss",
    "reviewkd_loss", "rkd_angle_loss", "rkd_distance_loss", "role_loss", "sampled_kd_loss",
    "sp_loss", "sparse_kd_loss", "standardized",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # Any: the public names have no common type
    if name not in _MODULE:
        raise AttributeError(f"module 'stillhouse.objectives' has no attribute '{name}'")
    return getattr(importlib.import_module(f"stillhouse.objectives.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
