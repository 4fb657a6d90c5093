"""What a score's name says about its direction."""

COSTS = ("parameters", "macs")
LOWER_ENDINGS = ("_loss", "_error", "_ms", "_mib", "_seconds")


def lower_is_better(name: str) -> bool:
    """Whether smaller values of this score are better; every other score is better when higher."""
    return name in COSTS or name.endswith(LOWER_ENDINGS)


def is_cost(name: str) -> bool:
    """Whether the score says what a model costs to run rather than how well it does."""
    return name in COSTS or name.endswith(("_ms", "_mib"))
