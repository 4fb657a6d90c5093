"""Where landmarks/two_teacher comes from, and what of it is a reconstruction."""

PAPER = (
    "Fard, Mahoor 2022, Facial landmark points detection using knowledge distillation-based neural "
    "networks (CVIU 215, arXiv 2111.07047)"
)
NOTES = (
    "`paper` is the loss as the paper's figures show it: beta 0.4, a ramp in the low-influence "
    "region, weights 0.9 and -0.45, |d| up to 1/2 as the main loss, times 2.5. The 2.5 and the "
    "gradient through the ramp are a reconstruction. `released` is the loss of the authors' code: "
    "beta 0.15, no loss below it, 1.9, -0.45, 1.8, -0.40, 3 |d| up to the tolerant teacher's own "
    "error as the main loss, times 2.",
    "The students of one teacher have the paper's loss without the other teacher.",
    "In fractions of the crop nearly every error is below the knee of the paper's main loss: it is "
    "L1 there. So the baseline is a student that learns by plain L1, and the paper's own, by L2, "
    "is a row beside it.",
    "Coordinates are fractions of the crop minus 1/2: the paper's, which are 1/2 minus the "
    "fraction, with the other sign.",
    "Soft landmarks: principal components of the augmented training shapes without alignment, "
    "clipped at three standard deviations. How much they explain (`variance`) is inferred from "
    "file names.",
    "The authors' weight decay of 1e-4 is taken as decoupled (AdamW): within the loss it would "
    "weigh more, the smaller a loss is, and the losses would not be comparable.",
    "An NME is divided by the distance of the outer eye corners (`normalizer`). On WFLW the "
    "authors' evaluation divides by that of the pupils: their numbers there are not comparable "
    "with other papers' (`--set normalizer=pupils` gives theirs).",
    "Augmentation: the authors store rotated copies. Zoom, shift and occlusion (`zoom`, `shift`, "
    "`occlusion`) are ours, at every scale, on the same copies for all teachers and students.",
    "At tiny and small the networks are small ones of ours, whose last map goes to the linear "
    "layer unpooled; at paper they are the paper's, with fresh weights and a global average pool.",
)
