"""Nested integer grids: which integer codes stand for a value at each bitwidth.

A value is `code * clip / steps`. Bit sharing needs every level of a bitwidth to be a level of the next
larger one too (Liu et al., TPAMI 2023, section 3.1); an INT8 engine needs every code in -128..127 with
zero-point 0. `Grid` checks both when it is made, so a list of bitwidths that cannot be shared is refused
before any training.

    family  tensor                 2 bits          4 bits           8 bits
    int8    weights                ±1 ±3   /3      ±1 … ±15  /15    -120 … 120  /120
    int8    activations >= 0       0 … 3   /3      0 … 15    /15    0 … 127     /120
    int8    activations, signed    -1 0 1  /1      -7 … 7    /7     -128 … 127  /126
    paper   weights, signed act.   ±1 ±3   /3      ±1 … ±15  /15    ±1 … ±255   /255
    paper   activations >= 0       0 … 3   /3      0 … 15    /15    0 … 255     /255
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from sbs_train.contract.errors import SbsError

Family = Literal["int8", "paper"]
Role = Literal["weight", "unsigned", "signed"]

CONTAINER_MIN, CONTAINER_MAX = -128, 127
"""Smallest and largest INT8 code. Only 8-bit activations use -128: the hardware saturates there, and any other end
would cost an engine a Clip on every signed tensor. Weights stay symmetric, so their signs can flip."""
CODES = 255
"""Steps between the ends of a byte."""


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """Integer codes of a tensor: `code = clip(round(x / step), code_min, code_max)`; its value is `code * step`.

    Weights of 2 and 4 bits take only odd codes; see `Level.odd`.
    """

    step: float
    code_min: int
    code_max: int

    @property
    def signed(self) -> bool:
        """Whether codes can be negative."""
        return self.code_min < 0


def range_quantizer(low: float, high: float) -> Quantizer:
    """The quantizer whose 256 codes span `low` to `high`, up to half a step; zero is exact.

    A value of zero has the code 0, so a byte holds the codes with the zero-point `-code_min`.

    Args:
        low, high: low <= 0 <= high, and not both 0.
    """
    step = (high - low) / CODES
    code_min = round(low / step)
    return Quantizer(step=step, code_min=code_min, code_max=code_min + CODES)


@dataclass(frozen=True, kw_only=True)
class Level:
    """One bitwidth's codes: every integer of `code_min..code_max`, or every odd one."""

    bits: int
    steps: int
    """Steps from zero to the clip value: a code is worth `clip / steps`."""
    code_min: int
    code_max: int
    odd: bool
    """Only odd codes are levels (the paper's weight grid: no zero)."""

    def codes(self) -> npt.NDArray[np.int64]:
        """All codes, ascending."""
        return np.arange(self.code_min, self.code_max + 1, 2 if self.odd else 1)

    def quantizer(self, clip: float) -> Quantizer:
        """The quantizer of this bitwidth for a tensor with the clip value `clip`."""
        return Quantizer(step=clip / self.steps, code_min=self.code_min, code_max=self.code_max)

    def affine(self) -> tuple[float, float, float, float]:
        """`(a, c, lo, hi)`: z = x / clip is quantized to `(round(clip(z*a - c, lo, hi)) + c) / a`.

        One form serves both kinds of grid (c = 0, or 1/2 where only odd codes count), so the bitwidth can be
        selected by indexing a table instead of by branching.
        """
        stride, offset = (2, 1) if self.odd else (1, 0)
        return (
            self.steps / stride,
            offset / stride,
            (self.code_min - offset) / stride,
            (self.code_max - offset) / stride,
        )

    def mean_error(self) -> float:
        """Mean quantization error of a value spread evenly between two levels, as a part of the clip value."""
        return (2 if self.odd else 1) / (4 * self.steps)

    def quantize(self, x: npt.ArrayLike, clip: float) -> npt.NDArray[np.int64]:
        """Nearest code of each value, saturating at the ends; the NumPy reference of the torch quantizer."""
        a, c, lo, hi = self.affine()
        rounded = np.round(np.clip(np.asarray(x, np.float64) / clip * a - c, lo, hi))
        code: npt.NDArray[np.int64] = np.rint((rounded + c) * (2 if self.odd else 1)).astype(np.int64)
        return code


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The levels of every candidate bitwidth of one tensor, coarse to fine.

    Raises:
        SbsError: a bitwidth is outside 2..8, repeated or out of order, a code leaves the container, or a
            coarser grid is not contained in a finer one.
    """

    role: Role
    family: Family
    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        for level in self.levels:
            if self.family == "int8" and not CONTAINER_MIN <= level.code_min <= level.code_max <= CONTAINER_MAX:
                raise SbsError(f"{level.bits}-bit {self.role} codes reach beyond ±{CONTAINER_MAX}; use fewer bits")
        for coarse, fine in zip(self.levels, self.levels[1:], strict=False):
            if not _values(coarse) <= _values(fine):
                raise SbsError(
                    f"{coarse.bits}-bit {self.role} levels are not contained in the {fine.bits}-bit ones, "
                    f"so the bits cannot be shared; use bitwidths such as 2 4 8"
                )

    @property
    def bits(self) -> tuple[int, ...]:
        return tuple(level.bits for level in self.levels)

    def level(self, bits: int) -> Level:
        """The level of a bitwidth; SbsError if it is not a candidate."""
        for level in self.levels:
            if level.bits == bits:
                return level
        raise SbsError(f"{bits} bits are not among the candidates {list(self.bits)}")


def make_grid(role: Role, bits: tuple[int, ...], family: Family = "int8") -> Grid:
    """The nested grid of `role` for candidate `bits`, ascending.

    In the int8 family the 8-bit grid has the largest multiple of the coarser step counts that fits the container, so it
    contains the coarser grids; its activations saturate at the container's end, as the hardware does.
    """
    if not bits or list(bits) != sorted(set(bits)) or bits[0] < 2 or bits[-1] > 8:
        raise SbsError(f"bitwidths {list(bits)} must be distinct, ascending and within 2..8, such as 2 4 8")
    coarse = [_coarse_level(role, b, family) for b in bits if b < 8 or family == "paper"]
    if bits[-1] < 8 or family == "paper":
        return Grid(role=role, family=family, levels=tuple(coarse))
    common = math.lcm(1, *(level.steps for level in coarse))
    steps = CONTAINER_MAX // common * common
    if not steps:
        raise SbsError(
            f"no 8-bit grid within ±{CONTAINER_MAX} contains those of {list(bits[:-1])} bits; "
            f"use bitwidths such as 2 4 8"
        )
    low, high = {"weight": (-steps, steps), "unsigned": (0, CONTAINER_MAX), "signed": (CONTAINER_MIN, CONTAINER_MAX)}[
        role
    ]
    finest = Level(bits=8, steps=steps, code_min=low, code_max=high, odd=False)
    return Grid(role=role, family=family, levels=(*coarse, finest))


def activation_role(signed: bool) -> Role:
    """The grid role of an activation."""
    return "signed" if signed else "unsigned"


def _coarse_level(role: Role, bits: int, family: Family) -> Level:
    if role == "unsigned":
        steps = 2**bits - 1
        return Level(bits=bits, steps=steps, code_min=0, code_max=steps, odd=False)
    if role == "weight" or family == "paper":
        steps = 2**bits - 1
        return Level(bits=bits, steps=steps, code_min=-steps, code_max=steps, odd=True)
    steps = 2 ** (bits - 1) - 1
    return Level(bits=bits, steps=steps, code_min=-steps, code_max=steps, odd=False)


def _values(level: Level) -> set[Fraction]:
    return {Fraction(int(code), level.steps) for code in level.codes()}
