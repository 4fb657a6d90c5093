"""Data protocol, in-memory columns, artifacts on disk; images, splits and files of readers."""

from stillhouse.data.data import (
    Columns,
    Data,
    PlannedData,
    Ragged,
    RowData,
    Rows,
    TensorData,
    in_memory,
)
from stillhouse.data.encoded import Decoder, Encoded
from stillhouse.data.images import IMAGE_SUFFIXES, fit_square, image_size, load_image, read_image
from stillhouse.data.notes import note
from stillhouse.data.shards import load_data, save_data
from stillhouse.data.sources import (
    check_apart,
    check_keys,
    check_stems,
    note_left_out,
    visible_files,
    visible_folders,
)
from stillhouse.data.splits import check_classes, child_splits, parts, split_of

__all__ = [
    "IMAGE_SUFFIXES", "Columns", "Data", "Decoder", "Encoded", "PlannedData", "Ragged", "RowData",
    "Rows", "TensorData", "check_apart", "check_classes", "check_keys", "check_stems",
    "child_splits", "fit_square", "image_size", "in_memory", "load_data", "load_image", "note",
    "note_left_out", "parts", "read_image", "save_data", "split_of", "visible_files",
    "visible_folders",
]  # fmt: skip
