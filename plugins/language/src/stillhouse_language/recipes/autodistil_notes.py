"""Where language/autodistil comes from, and what of it is a reconstruction."""

PAPER = (
    "Xu, Mukherjee, Liu, Dey, Wang, Zhang, Awadallah, Gao 2022, Few-shot task-agnostic neural "
    "architecture search for distilling large language models (NeurIPS 2022, arXiv 2201.12507)"
)
NOTES = (
    "`mse_softmax` is the paper's loss, of relations behind the softmax. The released code takes "
    "the scores before it (`--set kind=mse_scores`), MiniLMv2 the divergence (`kl`); which of them "
    "the printed numbers were made with is not stated.",
    "The sandwich rule (largest, smallest, two at random) is the text's and the code's; "
    "Algorithm 1 of the paper has random subnets alone. Which layers a shallow subnet keeps is the "
    "code's formula; the last of them is as a rule not the teacher's last.",
    "The search over all subnets by their loss on held-out text is the paper's; the released code "
    "has none, only searches that fine-tune.",
    "Parameters and MACs are true counts. The paper's are estimates that take queries, keys and "
    'values to be narrower than what is extracted (`parameter_count(..., kind="paper")`).',
    "K = 1 has all numbers of all sub-spaces, each with each. It is trained for as many steps as "
    "each of the SuperLMs, as the paper seems to, and for as many as all of them together: the few "
    "SuperLMs cost K times as much as the one.",
    "The hand-made student is every second layer of the teacher at a fixed width, distilled alone "
    "by the same loss for as many steps as a SuperLM, after MiniLM.",
    "'random' is another subnet of the search's table in each seed; the other students are one "
    "network, tuned with other labels in other batches. SuperLMs are trained once: intervals do "
    "not hold over another training of them.",
    "Row 'labels alone': the chosen shape with fresh weights.",
    "A teacher trained here (tiny) learned masked words of the same text for a short time.",
)


RATES = (
    "Each row, the teacher's too, has chosen its learning rate of fine-tuning among the same ones, "
    "by labelled rows of the training data that no student learns from, on labels of one draw; "
    "these rows are labels beyond the draw, and all have them alike. The ranked subnets are all "
    "tuned at the rate of the chosen one; other tasks, and all labels, at the row's own. The rate "
    "and the steps of the SuperLMs are settings; nothing was chosen by test data."
)


def notes(*, chosen: bool) -> tuple[str, ...]:
    """What stands under every report; `chosen`: whether rows choose their rates."""
    return (*NOTES, RATES) if chosen else NOTES


def caution(scale: str) -> str:
    """What must stand beside a headline of scale tiny."""
    if scale != "tiny":
        return ""
    return (
        "Scale tiny shows that everything works, not what the method is worth: teacher and "
        "students have learned for seconds, and on one seed a difference either way is chance; "
        "compare with `--scale small`."
    )
