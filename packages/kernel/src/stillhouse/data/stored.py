"""Data in Arrow IPC shards, read row by row through memory maps and decoded where it is encoded."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.data.data import Columns, Ragged, RowData, select
from stillhouse.data.encoded import Decoder, Encoded
from stillhouse.digest import canonical, digest
from stillhouse.errors import BadData, ContractError, CorruptArtifact, StaleInput
from stillhouse.trusted import check_arguments, code_of, decoder_class

Array = NDArray[Any]  # Any: of whatever dtype a column has


@dataclass(frozen=True, kw_only=True)
class StoredColumn:
    """A column in data.json: type and size of a row's values."""

    dtype: str
    shape: list[int]
    ragged: bool

    @property
    def plain(self) -> bool:
        """Whether batches hold it as it is stored."""
        return self.dtype not in ("text", "encoded")


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """An Arrow file in data.json."""

    file: str
    rows: int
    sha256: str

    def record(self) -> dict[str, str | int]:
        return asdict(self)


def decoder_record(decoder: Any) -> dict[str, Any]:  # Any: a Decoder, a dataclass; JSON
    """What data.json says of a decoder: how to make it, and what decides its bits."""
    return {
        "build": canonical(type(decoder), at="decoder")["name"],
        "kwargs": {f.name: getattr(decoder, f.name) for f in fields(decoder)},
        "version": decoder.version,
        "code": code_of(decoder),
    }


def write_shard(path: Path, part: Columns) -> ShardFile:
    """Write columns as one record batch, hashed on its way."""
    arrays = {name: _arrow(name, column) for name, column in part.items()}
    batch = pa.record_batch(list(arrays.values()), names=list(arrays))
    with path.open("wb") as file:
        sink = _Hashing(file)
        # compressed columns would be copied at each read, silently
        options = pa.ipc.IpcWriteOptions(compression=None)
        with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), batch.schema, options=options) as out:
            out.write_batch(batch)
    return ShardFile(file=path.name, rows=batch.num_rows, sha256=sink.total.hexdigest())


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.total = file, hashlib.sha256()

    def write(self, data: Any) -> int:  # Any: an Arrow buffer
        view = memoryview(data)
        self.total.update(view)
        return self.file.write(view)

    def flush(self) -> None:
        self.file.flush()

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        """Nothing: whoever opened the file closes it."""

    @property
    def closed(self) -> bool:
        return self.file.closed


def _arrow(name: str, column: Any) -> Any:  # Any: a column, an Arrow array
    match column:
        case Encoded():
            return pa.array(column.values, pa.large_binary())
        case list():
            return pa.array(column, pa.large_string())
        case Ragged():
            values = _numbers(column.values)
            width = int(np.prod(values.shape[1:]))
            return pa.LargeListArray.from_arrays(
                (column.offsets * width).numpy(), pa.array(values.reshape(-1))
            )
        case _:
            values = _numbers(column)
            if values.ndim == 1:
                return pa.array(values)
            width = int(np.prod(values.shape[1:]))
            if width == 0:
                raise BadData(f"column '{name}': rows without a value; leave the column out")
            return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)


def _numbers(values: Tensor) -> Array:
    """As numpy; types that it or Arrow's flat arrays lack as integers of their size."""
    values = values.detach().cpu().contiguous()
    if values.dtype == torch.bool:
        values = values.view(torch.uint8)
    if values.dtype == torch.bfloat16:
        values = values.view(torch.int16)
    return values.numpy()


class _Shard:
    """One file's columns, as views of its memory map."""

    def __init__(self, path: Path, columns: Mapping[str, StoredColumn]) -> None:
        source = pa.memory_map(str(path))
        whole = source.read_buffer(source.size())
        batch = pa.ipc.open_file(whole).get_batch(0)
        self.fixed: dict[str, Array] = {}
        self.lists: dict[str, tuple[Array, Array]] = {}  # offsets, values
        self.texts: dict[str, Any] = {}  # Any: Arrow arrays
        for name, column in columns.items():
            array = batch.column(name)
            shape = tuple(column.shape)
            match column.dtype:
                case "text":
                    self.texts[name] = array
                case "encoded":
                    _, offsets, data = array.buffers()
                    _check_mapped(path, whole, data)
                    starts = np.frombuffer(offsets, np.int64)[: len(array) + 1]
                    bytes_ = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
                    self.lists[name] = starts, bytes_
                case _ if column.ragged:
                    width = int(np.prod(shape))
                    values = _view(array.values).reshape(-1, *shape)
                    self.lists[name] = _view(array.offsets) // max(1, width), values
                case _:
                    flat = array.values if shape else array
                    self.fixed[name] = _view(flat).reshape(-1, *shape)

    def encoded(self, name: str, row: int) -> bytes:
        starts, data = self.lists[name]
        return data[starts[row] : starts[row + 1]].tobytes()


def _view(array: Any) -> Array:  # Any: an Arrow array of numbers
    """The numbers in place. (Arrow's own `to_numpy` imports pandas, in each process, for 0.7 s.)"""
    dtype = np.dtype(array.type.to_pandas_dtype())
    if not len(array):
        return np.empty(0, dtype)
    start = array.offset * dtype.itemsize
    return np.frombuffer(array.buffers()[1], dtype, count=len(array), offset=start)


def _check_mapped(path: Path, whole: Any, data: Any) -> None:  # Any: Arrow buffers
    """Raises CorruptArtifact for a compressed file: it would be copied at every opening."""
    inside = data is None or whole.address <= data.address < whole.address + whole.size
    if not inside:
        raise CorruptArtifact(f"{path}: compressed; run the stage that made it again")


class StoredData(RowData):
    """Data in shards: nothing of it is held in memory; pickled by its paths."""

    def __init__(
        self,
        path: Path,
        shards: list[ShardFile],
        stored_columns: Mapping[str, StoredColumn],
        decoders: Mapping[str, Decoder],
    ) -> None:
        self.path, self.shards = path, shards
        self.stored_columns, self.decoders = stored_columns, decoders
        self.starts = torch.tensor([0, *(shard.rows for shard in shards)]).cumsum(0)
        self._opened: dict[int, _Shard] = {}
        self._columns: _Lazy | None = None

    @classmethod
    def opened(
        cls,
        path: Path,
        shards: list[ShardFile],
        *,
        columns: Mapping[str, StoredColumn],
        decoders: Mapping[str, Mapping[str, Any]],  # Any: JSON
    ) -> "StoredData":
        """That of a data.json. Raises StaleInput for a decoder whose code is another now,
        CorruptArtifact for a shard that is cut or missing.
        """
        made = {name: _decoder(path, record) for name, record in decoders.items()}
        data = cls(path, shards, columns, made)
        for number in range(len(shards)):
            data.shard(number)
        return data

    def __getstate__(self) -> dict[str, Any]:  # Any: attributes
        return {**vars(self), "_opened": {}, "_columns": None}

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def stored(self) -> bool:
        return True

    @property
    def digest(self) -> str:
        """sha256 of what makes the data: the digests of its files and what decodes them."""
        decoders = {name: decoder_record(decoder) for name, decoder in self.decoders.items()}
        shards = [shard.record() for shard in self.shards]
        columns = {name: asdict(column) for name, column in self.stored_columns.items()}
        return digest({"shards": shards, "columns": columns, "decoders": decoders})

    def shard(self, number: int) -> _Shard:
        if number not in self._opened:
            found = _Shard(self.path / self.shards[number].file, self.stored_columns)
            self._opened[number] = found
        return self._opened[number]

    @property
    def columns(self) -> Mapping[str, Tensor | Ragged | list[str]]:
        if self._columns is None:
            self._columns = _Lazy(self)
        return self._columns

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        for name, column in self.stored_columns.items():
            if column.plain and not column.ragged:
                batch[name] = self._fixed(name, index)
            elif column.plain:
                found = self._ragged(name, index)
                batch[name], batch[f"{name}_offsets"] = found.values, found.offsets
        for name, decoder in self.decoders.items():
            batch[name] = self._decoded(name, decoder, index, batch)
        return batch

    def select(self, index: Tensor) -> Columns:
        encoded = {
            name: Encoded(values=[self._bytes(name, i) for i in index.tolist()], decoder=decoder)
            for name, decoder in self.decoders.items()
        }
        plain = {
            name: self.column(name, index) for name, c in self.stored_columns.items() if c.plain
        }
        texts = {name: c for name, c in self.columns.items() if isinstance(c, list)}
        return {**plain, **select(texts, index), **encoded}

    def column(self, name: str, index: Tensor) -> Tensor | Ragged:
        """These rows of a plain column."""
        ragged = self.stored_columns[name].ragged
        return self._ragged(name, index) if ragged else self._fixed(name, index)

    def _places(self, index: Tensor) -> Iterator[tuple[int, Tensor, Array]]:
        """Each shard that some of the rows are in: its number, which they are of the index, and
        their places in it.
        """
        which = torch.searchsorted(self.starts, index, right=True) - 1
        for number in which.unique().tolist():
            of = (which == number).nonzero().flatten()
            yield number, of, (index[of] - self.starts[number]).numpy()

    def _fixed(self, name: str, index: Tensor) -> Tensor:
        column = self.stored_columns[name]
        found = torch.empty(len(index), *column.shape, dtype=getattr(torch, column.dtype))
        for number, of, places in self._places(index):
            found[of] = _tensor(self.shard(number).fixed[name][places], column)
        return found

    def _ragged(self, name: str, index: Tensor) -> Ragged:
        column = self.stored_columns[name]
        rows: dict[int, Array] = {}
        for number, of, places in self._places(index):
            offsets, values = self.shard(number).lists[name]
            for at, place in zip(of.tolist(), places.tolist(), strict=True):
                rows[at] = values[offsets[place] : offsets[place + 1]]
        lengths = torch.tensor([0, *(len(rows[i]) for i in range(len(index)))])
        joined = np.concatenate([rows[i] for i in range(len(index))]) if rows else None
        empty = torch.empty(0, *column.shape, dtype=getattr(torch, column.dtype))
        values = empty if joined is None else _tensor(joined, column)
        return Ragged(values=values, offsets=lengths.cumsum(0))

    def _bytes(self, name: str, row: int) -> bytes:
        number = int(torch.searchsorted(self.starts, row, right=True)) - 1
        return self.shard(number).encoded(name, row - int(self.starts[number]))

    def _decoded(
        self, name: str, decoder: Decoder, index: Tensor, batch: Mapping[str, Tensor]
    ) -> Tensor:
        whole: Tensor | None = None
        for i, row in enumerate(index.tolist()):
            where = f"{self.path}: row {row}, column '{name}'"
            others = {key: value[i] for key, value in batch.items() if len(value) == len(index)}
            value = decoder(self._bytes(name, row), others, where)
            whole = value.new_empty(len(index), *value.shape) if whole is None else whole
            if value.shape != whole.shape[1:]:
                raise ContractError(
                    f"{where}: {type(decoder).__name__} gave {list(value.shape)}, and "
                    f"{list(whole.shape[1:])} for the row before"
                )
            whole[i] = value
        if whole is None:
            raise BadData(f"{self.path}: a batch without rows")
        return whole


class _Lazy(Mapping[str, "Tensor | Ragged | list[str]"]):
    """The columns that are not encoded, each read on first access and kept."""

    def __init__(self, data: StoredData) -> None:
        self.data = data
        self.known: dict[str, Tensor | Ragged | list[str]] = {}

    def __getitem__(self, name: str) -> Tensor | Ragged | list[str]:
        if name not in self.known:
            if name not in set(self):
                raise KeyError(name)
            self.known[name] = self._read(name)
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        columns = self.data.stored_columns.items()
        return (name for name, column in columns if column.dtype != "encoded")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _read(self, name: str) -> Tensor | Ragged | list[str]:
        if self.data.stored_columns[name].dtype == "text":
            shards = range(len(self.data.shards))
            return [t for n in shards for t in self.data.shard(n).texts[name].to_pylist()]
        return self.data.column(name, torch.arange(len(self.data)))


def _tensor(values: Array, column: StoredColumn) -> Tensor:
    dtype: torch.dtype = getattr(torch, column.dtype)
    found = torch.from_numpy(values)
    return found if found.dtype == dtype else found.view(dtype)


def _decoder(path: Path, record: Mapping[str, Any]) -> Decoder:  # Any: JSON
    """Its code is compared while a stage runs, which is when keys are made of it."""
    name, kwargs = record["build"], record["kwargs"]
    build = decoder_class(name)
    check_arguments(build, kwargs, name=name)
    decoder = build(**kwargs)
    again = "run the stage that made the data again"
    here, made = code_of(decoder), record.get("code")
    if here and made and here != made:
        raise StaleInput(f"{path}: the code of its decoder {name} changed; {again}")
    if decoder.version != record.get("version"):
        raise StaleInput(
            f"{path}: checked with {record.get('version')}, and {decoder.version} is installed: "
            f"it may decode other bits; {again}"
        )
    return decoder
