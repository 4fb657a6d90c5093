"""Where pointcloud/pointdistiller comes from, and what of it is a reconstruction."""

PAPER = (
    "Zhang, Dong, Tai, Ma 2023, PointDistiller: Structured Knowledge Distillation Towards "
    "Efficient and Compact 3D Detection (CVPR, arXiv 2205.11098)"
)
NOTES = (
    "4x and 16x are the paper's names for students of half and a quarter of the teacher's "
    "channels, and so about a quarter and a sixteenth of its parameters and multiply-accumulates.",
    "Local graphs are those of the pillars' features: neighbours are near in the teacher's "
    "features, not in space. local only leaves out the reweighting. reweight only leaves out the "
    "graphs: the same pillars, each compared through encoders of its own (a reconstruction; the "
    "paper does not say how).",
    "With compat=paper the loss is that of the paper's equations; its sum over channels and items "
    "is brought to twice their mean, the size of the released code's, and counts are divided by "
    "the most points in a pillar of the cloud (normalise), with tau for such counts. "
    "compat=official is what the released code computes: its temperature for pillars is 0.01 "
    "whatever its settings say, and the loss that is not reweighted is a norm, not squared. Its "
    "teacher runs in training mode; here it does not.",
    "FitNets and AT compare the canvas of pillars (`hint`), the first by a trained 1 x 1 "
    "convolution, BatchNorm and ReLU. Their weights are ours, the paper prints none: chosen so "
    "that at small each loss begins about where the graph losses do (see the curves); at other "
    "scales that was not looked at (AT's is a mean over positions of maps of 2-norm 1, and so "
    "smaller, the more cells a grid has).",
    "Students have the same first weights and batches of a seed, whatever they learn from. "
    "Encoders and regressors are trained beside them and are no part of them.",
    "The graph loss has two learned encoders, and they can lower it without the student: the study "
    "of the encoders trains them alone, both detectors as they were, for as long and on the same "
    "batches (first seed, the exported student's loss) and says what part of the loss's fall is "
    "the student's. teacher_encoder=frozen, which is ours, leaves the teacher's as it was drawn.",
    "One teacher, of one seed, teaches the students of all seeds: the intervals are those of the "
    "students' seeds and do not hold the teacher's. Encoders and regressors have the student's "
    "learning rate, weight decay and gradient clip. One network finds all three classes, where the "
    "authors train one for cars and one for pedestrians and cyclists. BatchNorm's momentum is 0.1 "
    "at tiny and small, 0.01 at paper. A pillar keeps its first points and a cloud its fullest "
    "pillars, where the published detector draws them.",
    "AP is KITTI's over 40 recalls; a right box shares 0.7 (cars) or 0.5 in space with the truth, "
    "unless `overlaps` says otherwise, as it does at tiny, where nobody learns long enough for "
    "that. Truths outside the detectors' grid are ignored. All scores are those of the last step.",
    "Other frames' objects are pasted into a scene (GT sampling), which the paper trains with, "
    "only where `gt_sampling` says how many; a frame draws from twice as many objects of its own, "
    "not from all. Not here: the authors' cyclic schedule, for which a cosine stands that rises "
    "as long and as high. The optimizer's betas are AdamW's own.",
)
ONNX = (
    "ONNX holds the network from pillars to maps. Sorting points into pillars and turning maps "
    "into boxes is outside it."
)
STOCK = (
    "The detectors are mmdetection3d's: voxels, layers, losses and boxes are those of their "
    "configurations, and x, y, cell, max_points, max_pillars and layers do not count; momentum "
    "does. Their losses take Vans and people who sit for background, which ours leave out. Of a "
    "detector with several distilled maps each has encoders of its own; the losses are added."
)
FEW = (
    "The drawn test scenes hold fewer than 41 boxes of each class at moderate, and KITTI's AP "
    "needs 41: n boxes, all found, give (n - 1) / 40. What a detector that finds everything would "
    "have here is computed by the same code and stands in a table of its own.",
)
MIXED = (
    "Training frames are rendered street scenes and the real ones, each of which is there several "
    "times (`copies`); rows are scored on held-out rendered scenes. Real test frames are a study "
    "of their own: so few of them show whether a detector carries over from rendered scenes at "
    "all, and no difference between rows. Their AP is over exact recalls, since KITTI's "
    "thresholds need 41 true boxes of a class.",
)
