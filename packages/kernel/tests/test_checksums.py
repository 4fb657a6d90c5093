"""Checksums of frozen roles: what they notice, and what they cost in memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillhouse.checksums import ROW, bits_of, checksum
from stillhouse.digest import text_digest
from stillhouse.engine import fit
from stillhouse.errors import BadSetting
from stillhouse.testing.killing import KilledError, die_at_checkpoint

from .toys import Net, toy_context, toy_data, toy_models, toy_objective, toy_setup

PEAK = """
import sys
from pathlib import Path
import torch
from torch import nn
from stillhouse.checksums import bits_of

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

module = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8)))  # 134 MB
bits_of(nn.Linear(8, 8))
before = peak()
bits_of(module)
print(peak() - before)
"""


def numbers(dtype: torch.dtype, count: int = 1000) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    if dtype is torch.bool:
        return torch.rand(count, generator=rng) < 0.5
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(count, generator=rng).to(dtype)
    return torch.randint(0, 100, (count,), generator=rng).to(dtype)


def flipped(tensor: Tensor, bit: int) -> Tensor:
    found = tensor.clone()
    found.view(torch.uint8)[bit // 8] ^= 1 << bit % 8
    return found


def odd(number: int) -> int:
    """The number of a place, on Python's own integers."""
    full = 2**64
    mixed = (number + 1) * 0x9E3779B97F4A7C15 % full
    for shift in (33, 29):
        mixed = (mixed ^ mixed >> shift) * 0xFF51AFD7ED558CCD % full
    return (mixed ^ mixed >> 32) | 1


def by_hand(tensor: Tensor) -> int:
    """The checksum's formula on Python's own integers, word by word."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    raw += bytes(-len(raw) % 4)
    words = [
        int.from_bytes(raw[4 * i : 4 * i + 4], "little", signed=True) for i in range(len(raw) // 4)
    ]
    whole = len(words) // ROW
    factors = [odd(ROW + row) for row in range(whole)] + [1]
    return sum(w * odd(i % ROW) * factors[i // ROW] for i, w in enumerate(words)) % 2**64


DTYPES = (
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn),
    *(torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.complex64),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_formula(dtype: torch.dtype) -> None:
    kind = str(dtype).removeprefix("torch.")
    for count in (0, 1, 7, 1000):
        value = numbers(dtype, count)
        assert checksum(value) == f"{by_hand(value):016x} {kind} [{count}]"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_flipped_bit_shows(dtype: torch.dtype) -> None:
    if dtype is torch.bool:  # a byte of a bool is 0 or 1
        value = numbers(dtype)
        others = [value.clone() for _ in range(64)]
        for place, other in enumerate(others):
            other[place] = ~other[place]
    else:
        value = numbers(dtype, 16)
        others = [flipped(value, bit) for bit in range(value.nbytes * 8)]
    found = {checksum(other) for other in others}
    assert len(found) == len(others)
    assert checksum(value) not in found


def test_elements_in_each_others_place_show() -> None:
    value = numbers(torch.float32, 40)
    value[1], value[7] = -value[3], -value[8]  # a swap of x and -x moves sign bits alone
    found = {checksum(value)}
    pairs = [(i, j) for i in range(40) for j in range(i)]
    for i, j in pairs:
        other = value.clone()
        other[i], other[j] = value[j], value[i]
        found.add(checksum(other))
    assert len(found) == len(pairs) + 1
    # a transposed square; signs of any two; zeros of either sign; a row in another's place
    signs = [value.clone() for _ in pairs]
    for other, (i, j) in zip(signs, pairs, strict=True):
        other[[i, j]] = -other[[i, j]]
    assert len({checksum(other) for other in signs}) == len(pairs)
    assert checksum(torch.tensor([0.0, -0.0])) != checksum(torch.tensor([-0.0, 0.0]))
    rows = numbers(torch.float32, 4 * ROW).view(4, -1)
    assert checksum(rows) != checksum(rows[[0, 2, 1, 3]])


def test_a_nan_of_other_bits_shows() -> None:
    plain = torch.tensor([float("nan")] * 3)
    other = flipped(plain, 3)
    assert bool(other.isnan().all())
    assert checksum(plain) != checksum(other)
    assert checksum(plain) == checksum(plain.clone())


def test_dtype_and_shape_count() -> None:
    value = numbers(torch.float32, 12)
    found = {checksum(v) for v in (value, value.view(3, 4), value.view(torch.int32), value[:11])}
    assert len(found) == 4


def test_layout_and_pieces_do_not_count() -> None:
    image = numbers(torch.float32, 3 * ROW + 5 * 15).view(-1, 3)[:, :2]
    assert checksum(image) == checksum(image.contiguous())
    # a view that begins in the middle of a word
    flat = numbers(torch.int8, 1000)
    assert checksum(flat[3:]) == checksum(flat[3:].clone())
    large = numbers(torch.float64, ROW + 3)
    assert checksum(large).split()[0] == f"{by_hand(large):016x}"


def test_buffers_count() -> None:
    module = Net(4)
    before = bits_of(module)
    module.norm.num_batches_tracked += 1
    assert {name for name, bits in bits_of(module).items() if before[name] != bits} == {
        "norm.num_batches_tracked"
    }


def test_a_checksum_takes_no_copy() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16 << 20


def test_a_checkpoint_of_an_older_stillhouse_is_one_line(tmp_path: Path) -> None:
    ctx = toy_context(tmp_path, observe=die_at_checkpoint, checkpoint_steps=10)
    with pytest.raises(KilledError):
        fit(toy_objective(), toy_models(), toy_data(), setup=toy_setup(), ctx=ctx)
    (file,) = (tmp_path / "checkpoints").glob("step-*/state.json")
    record = json.loads(json.loads(file.read_text())["record"])
    record["fingerprint"]["role 'teacher'"] = "5" * 64  # as sha256 had it
    text = json.dumps(record)
    file.write_text(json.dumps({"digest": text_digest(text), "record": text}))
    with pytest.raises(
        BadSetting,
        match=r"^stage 'toy': the checkpoint in .*checkpoints is of an older Stillhouse, which knew "
        r"role 'teacher' by other digests: whether it is the same is unknown\. Give another "
        r"folder, or delete this one$",
    ):
        fit(toy_objective(), toy_models(), toy_data(), setup=toy_setup(), ctx=toy_context(tmp_path))
