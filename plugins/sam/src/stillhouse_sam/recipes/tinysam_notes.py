"""Where sam/tinysam comes from, and what of it is a reconstruction."""

PAPER = (
    "Shu, Li, Tang et al. 2025, TinySAM: Pushing the Envelope for Efficient Segment Anything Model "
    "(AAAI, arXiv 2312.13789)"
)
NOTES = (
    "The authors released inference only, no training and no calibration. The terms of the loss, "
    "hard prompts, hard mask weighting and the scale search are the paper's; their weights (1, 1, "
    "1), 20 focal to 1 dice, the learning rates, that points replace each other with label 1, the "
    "mean over prompts and the boxes beside the points are a reconstruction.",
    "Where `more_clicks` is not 0, half of the steps of all rows but embedding only, and of a "
    "teacher trained here, give further points together with a prompt, from where its mask errs: "
    "SAM's interactive training with one sampling pass, no part of this paper.",
    "embedding only is MobileSAM's way (arXiv 2306.14289): the encoder learns the teacher's "
    "embedding, the decoder stays the teacher's. alone learns from the true masks with the "
    "teacher's decoder to begin with, and never runs the teacher. Prompt encoders are the "
    "teacher's, frozen.",
    "All rows are trained for the same steps, on the same batches of their seed. From embedding "
    "only to + tokens and output several things are added at once, as the paper's loss has them: "
    "token and output terms, mask and IoU against the truth, and a decoder that learns. Hard "
    "prompts, then hard mask weighting, add one each; but weighting also makes the output term "
    "smaller: of a mask that teacher and student draw as well the weight is 1/2, without it 1.",
    "The output term compares raw logits, which no weight of the paper bounds: where its curve is "
    "above the others (Training), it leads the direction of a step, whose gradient is cut to a "
    "2-norm of `clip_norm`, which is not of the paper.",
    "One teacher, trained or given once, teaches the students of all seeds: intervals over seeds "
    "do not hold what another teacher would change.",
    "W8A8 and fewer are fake-quantized: rounded numbers in floats. Scales: alternating grid search "
    "for the least output error weighted by squared task gradients, on training photos. The "
    "gradient is that of the KL divergence of the quantized from the float network: the published "
    "search takes KL(y, y), whose gradient is zero but for rounding. After a softmax a number is "
    "rounded in one of two ranges, never the sum of both as in the released code. All ops are "
    "rounded, that of a prompt's coordinates with the random matrix of their encoding among them.",
    "The int8 row is an ONNX file whose image encoder ONNX Runtime runs with integers, by the "
    "scales found; prompt encoder and decoder stay floats, as fast there and more exact. After a "
    "softmax or a GELU it has one range, since ONNX has no two.",
    "Box prompts of all scores are true boxes: the paper's are those that ViTDet-H detects, so its "
    "AP is not comparable. AP is within the objects of each category, scored by predicted IoU.",
    "Of everything mode, seconds are those of prompt encoder and mask decoder unless they are "
    "called otherwise. high_confidence is 8.5 for SAM's own logits; for small SAMs it is the least "
    "logit tried that costs at most a point of mIoU on training photos, and the report states it.",
    "At tiny and small the SAMs are small ones of segment_anything's own parts, trained here; "
    "scenes are rendered and photos few, so that no number is comparable with the paper's. The "
    "teacher's decoder first learns to fill boxes, over noise in the place of an image "
    "(`box_steps`), which is no part of the paper. An answer that fills the box and never looks at "
    "the image has its score among the figures: a model below it is not worth its cost.",
)
