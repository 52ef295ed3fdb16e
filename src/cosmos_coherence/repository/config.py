"""The ``config`` file: version, identity, and the polynomial that restic's own chunker cuts with."""

from __future__ import annotations

import re
import secrets
from typing import Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.repository.crypto import Buffer

VERSION: Final = 2
_DEGREE: Final = 53


class Config(msgspec.Struct, frozen=True):
    """What ``config`` holds, in the format's own spelling."""

    version: int
    id: str
    """64 hex digits, the repository's for life."""
    chunker_polynomial: str
    """An irreducible polynomial of degree 53 over GF(2), in hex. It is kept for restic; our chunker has a seed."""


def new() -> Config:
    """A new identity."""
    return Config(VERSION, secrets.token_hex(32), f"{_draw():x}")


def encode(config: Config) -> bytes:
    """The JSON, which is sealed as it is: ``config`` is never compressed."""
    return msgspec.json.encode(config)


def decode(plain: Buffer) -> Config:
    """The config. Raises ``Damaged``, and ``Unsupported`` for a version other than 2."""
    try:
        config = msgspec.json.decode(plain, type=Config)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.Damaged(f"the repository's config is not one: {error}") from error
    if config.version != VERSION:
        raise errors.Unsupported(
            f"the repository has format version {config.version}",
            remedy="`restic migrate upgrade_repo_v2` makes a repository of version 1 one of version 2.",
        )
    if not re.fullmatch("[0-9a-f]{64}", config.id):
        raise errors.Damaged("the repository's config has no identity")
    return config


def is_irreducible(polynomial: int) -> bool:
    """Whether a polynomial over GF(2) of prime degree has no divisor (Rabin's test). Bit n stands for x^n."""
    power = 2  # x, squared again and again
    for step in range(polynomial.bit_length() - 1):
        power = _square(power, polynomial)
        if step == 0 and _divisor(polynomial, power ^ 2) != 1:
            return False
    return power == 2


def _draw() -> int:
    # Without bit 0 it would be divisible by x; about one in 27 of the rest will do.
    while True:
        polynomial = secrets.randbits(_DEGREE) | 1 << _DEGREE | 1
        if is_irreducible(polynomial):
            return polynomial


def _square(value: int, modulus: int) -> int:
    spread = int(f"{value:b}", 4)  # (sum of x^i)^2 is the sum of x^2i
    return _modulo(spread, modulus)


def _modulo(value: int, modulus: int) -> int:
    while (shift := value.bit_length() - modulus.bit_length()) >= 0:
        value ^= modulus << shift
    return value


def _divisor(a: int, b: int) -> int:
    while b:
        a, b = b, _modulo(a, b)
    return a
