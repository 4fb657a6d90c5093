"""Where the recipes come from, and what of them is a reconstruction."""

PAPER = (
    "Song et al. 2024, Multi-student diffusion distillation for better one-step generators (MSD, "
    "arXiv 2410.23274)"
)
NOTES = (
    "MSD has no published code. Distribution matching (DM), the two-time-scale fake score and the "
    "adversarial stage (ADM) are those of DMD and DMD2 as their papers and code have them; noise "
    "levels, weights and the sampler are EDM's. They were written here; nothing was copied.",
    "Teacher and students start from the same largest noise level. At tiny and small it is 10 and "
    "not EDM's 80, and training noise is wider than EDM's: a student that starts where its teacher "
    "was never trained learns nothing.",
    "Every row's students are trained alike; 'x2' gives each of them twice the steps. The row of "
    "one student with as many times the steps as the method has students costs the same training "
    "as the method: it is the baseline. The row of one student at equal steps is the paper's.",
    "The paper's fake score of a narrow student begins as its teacher; `fake_init=tsm` is another "
    "reading. Teacher score matching (TSM) runs once on all data for all students of a seed.",
    "The regression of rows with pairs is a mean squared error, where DMD has LPIPS; its weight "
    "is from memory. As in the paper, pairs are not filtered by part.",
    "Frechet and kernel distance are those of FID and KID, on features of the network that the run "
    "names: they cannot be compared with numbers on Inception's features, or across networks. "
    "Beside them stands what as many held-out real images get.",
    "At small the students' learning rate of stage 1 is the best of a grid by the Frechet distance "
    "to training images, on a seed of its own, for one student and one of five; the student with "
    "five times the steps was tried at all but the highest rate of that grid. The other "
    "settings of small, and those of paper, are first guesses.",
    "Training steps count each update of a fake score; a generator is updated every `ratio` of "
    "them. A student stored is not a student used: one network makes an image, all are stored.",
)
MIXTURE_NOTES = (
    *NOTES[:5],
    "The layout of the points is the paper's from memory, but for the standard deviation of a "
    "mode, which is larger here. The L1 distance of histograms depends on the number of points: "
    "read it beside that of the teacher to itself.",
)
