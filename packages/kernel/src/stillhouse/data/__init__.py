"""Data protocol, in-memory columns, artifacts on disk."""

from stillhouse.data.data import Columns, Data, Ragged, Rows, TensorData
from stillhouse.data.shards import load_data, save_data

__all__ = ["Columns", "Data", "Ragged", "Rows", "TensorData", "load_data", "save_data"]
