"""Where clip/vlm_ood comes from, and what of it is a reconstruction."""

PAPER = (
    "Li, Fang, Liu, Ling, Tu, Su 2023, Distilling Large Vision-Language Models with "
    "Out-of-Distribution Generalizability (ICCV 2023, arXiv 2307.03135)"
)
NOTES = (
    "Unseen classes are classes of the same data set that no student was trained on, the paper's "
    "out-of-distribution: its images are of the same kind.",
    "Losses follow the authors' published code where it differs from the formulas: cosines over "
    "the temperature in the contrastive imitation, proximity averaged over the images that the "
    "filter leaves. All weights are 1.",
    "Accuracies are means over classes, as the authors report them, after the last step. They "
    "average the last five epochs; their best checkpoint is chosen on the unseen classes, which is "
    "not done here.",
    "Augmented views are drawn for each image; in the authors' code all images of a batch share "
    "one crop. The teacher sees each image once, as it is.",
    "The metrics of spaces have no published code: they are the formulas, on unit vectors, an "
    "image's own embedding left out of its neighbours.",
    "Five shots by fine-tuning: half of each batch are known classes, half shots, with the losses "
    "of the row over all classes. By retrieval: the teacher's embeddings of augmented shots, "
    "nothing trained.",
)
OWN = (
    "The teacher is trained here on all classes, known and unseen, with names and descriptions: a "
    "stand-in for one that saw the web. Unseen test images are none of those it saw."
)
CLOSED_SET = (
    "The closed set is the student's network with a linear classifier of the known classes on its "
    "embedding, trained by cross-entropy; it reads no text. By its shots alone: a class is voted "
    "for by the student's own embeddings of augmented shots, as in retrieval without the texts."
)
RATES = (
    "Each row has its own learning rate, the baseline and the closed set too, chosen among the "
    "same rates on a fifth of the training images of known classes (benchmarks/clip_grid.py)."
)
GRID = (
    "A grid: students, and the map of a joined teacher, learn from four fifths of the training "
    "images of known classes, and scores are those on the last fifth. No stage reads the "
    "validation images or unseen classes, but for the teacher of drawn scenes, which is trained on "
    "all."
)
JOINED = (
    "The teacher is an image network trained on labels of 1,000 classes, the unseen ones among "
    "them, and a sentence encoder; the linear map between both is learned on known classes and "
    "captioned photos alone. So its image features separate the unseen classes, as those of a "
    "teacher that saw the web would; the words for them it has to guess."
)
