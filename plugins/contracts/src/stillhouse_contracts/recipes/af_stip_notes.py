"""Where contracts/af_stip comes from, and how much of it is a reconstruction."""

PAPER = (
    "Reconstruction of AF-STip: Wang, Jiang 2024, Knowledge Migration Framework for Smart Contract "
    "Vulnerability Detection (arXiv 2412.11175), of which only the abstract and reviews were to be "
    "had"
)
# what each student is given
RECEIVES = (
    "What the student's side is given. noise: the teacher's weights, among them the embedding "
    "table and BatchNorm statistics; no contract. generator: the same, and the public vocabulary. "
    "perturbed: the teacher's training contracts, distorted; it is NOT data-free. public: "
    "contracts without labels that are in no other part, and the teacher's answers. kd and "
    "supervised: the training contracts with their labels. The test contracts only score."
)
NOTES = (
    "Official, by the abstract and two reviews: comments stripped, fragments, fixed vectors by "
    "Word2Vec and FastText; a teacher with feature extraction and adaptive fusion (query "
    "enhancement, external memory, multi-stage convolution); a light student, STip; distillation "
    "and classification losses on pseudo-samples that Gaussian noise distorts. All equations, "
    "widths, data sets and settings are inferred.",
    RECEIVES,
    "One network with a sigmoid a type stands for the paper's detector a type. Its data, the four "
    "types and the code are not public.",
    "A function is normalised (names numbered, comments and literals gone) and, where it is longer "
    "than the network reads, cut to the tokens nearest to key statements. By default a token's "
    "vector is a fixed number of the vocabulary's order, learned from no contract; with "
    "`embedding=word2vec` it is learned from the teacher's training contracts, and goes with the "
    "teacher's weights.",
    "Parts are drawn by text: no function has the tokens of one in another part, which the field's "
    "usual random split does not see to. The cross-validation shows both, and by contract.",
    "The student normalises by LayerNorm: BatchNorm statistics of noise would not fit contracts. "
    "Noise has the balance of the teacher's own answers: of more noise than needed that is kept of "
    "which it is most confident for each type and for none.",
    "Labels are those of the data's authors: analysis tools agree on many of them, nobody has read "
    "them all; functions of flagged contracts without a label count as free of flaws.",
    "At small, each row's rate and temperature (the regression's strength) are the best of four "
    "cells on a held-out fifth of the training contracts, by text, with one seed: see "
    "benchmarks/contracts_grid.py. Length, widths and steps are what the time allows; noise's "
    "spread and the generator's weights are untuned. At tiny nothing is tuned.",
    "At small, functions with a type weigh five times in the losses of all rows that learn from "
    "labels (1 and 5 were tried on the same held-out functions): types are rare, and without it "
    "short trainings say no to everything. Probabilities are too high by as much, and calibration "
    "errors with them.",
    "In the cross-validation a fold is held out, the next is the public contracts and three train; "
    "each distilled row has the teacher of its fold. At small the folds have one draw, not five, "
    "and leave out the generator, the BiLSTM and the distorted contracts (together more than half "
    "of the time); by contract and at random they leave out the teacher and whatever it teaches. "
    "benchmarks/contracts_folds.py trains more draws and the learners that are left out.",
)
CAUTION = (
    "Where a data-free row is no better than saying yes to everything, distillation without "
    "contracts has failed. Students from noise, from generated texts and from distorted contracts "
    "are given different things: see the notes. Distorted contracts are not data-free."
)
