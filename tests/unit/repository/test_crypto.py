"""Sealing, keys, config."""

from __future__ import annotations

import os
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from cosmos_coherence import errors
from cosmos_coherence.repository import config, keys
from cosmos_coherence.repository.crypto import OVERHEAD, Key, Scrypt, Sealer, derive
from support.memory_backend import MemoryBackend

KEY = Key.new()


def poly1305(key: bytes, message: bytes) -> bytes:
    """The sum as it is defined, in whole numbers."""
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for at in range(0, len(message), 16):
        block = message[at : at + 16] + b"\x01"
        total = (total + int.from_bytes(block, "little")) * r % (2**130 - 5)
    return ((total + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


@given(st.binary(max_size=300))
def test_what_is_sealed_opens_and_is_what_the_format_says(plain: bytes) -> None:
    sealer = Sealer(KEY)
    room = bytearray(len(plain) + OVERHEAD + 3)
    assert sealer.seal_into(plain, memoryview(room)) == len(plain) + OVERHEAD
    sealed = bytes(room[:-3])
    assert sealer.open(sealed) == plain
    iv, body, tag = sealed[:16], sealed[16:-16], sealed[-16:]
    cipher = Cipher(algorithms.AES(KEY.encrypt), modes.CTR(iv)).decryptor()
    assert cipher.update(body) + cipher.finalize() == plain
    nonce = Cipher(algorithms.AES(KEY.mac_k), modes.ECB()).encryptor().update(iv)
    assert poly1305(KEY.mac_r + nonce, body) == tag


@given(st.binary(max_size=60), st.data())
def test_every_flipped_bit_and_every_cut_is_seen(plain: bytes, data: st.DataObject) -> None:
    sealer = Sealer(KEY)
    sealed = bytearray(sealer.seal(plain))
    length = data.draw(st.integers(0, len(sealed) - 1))
    with pytest.raises(errors.Damaged):
        sealer.open(sealed[:length])
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(errors.Damaged):
        sealer.open(sealed)


def test_another_key_does_not_open() -> None:
    with pytest.raises(errors.Damaged):
        Sealer(Key.new()).open(Sealer(KEY).seal(b"x"))


def test_no_iv_comes_twice_even_after_a_fork() -> None:
    sealer = Sealer(KEY)
    ivs = {sealer.seal(b"")[:16] for _ in range(3000)}
    assert len(ivs) == 3000
    out, back = os.pipe()
    child = os.fork()
    if not child:
        os.write(back, b"".join(sealer.seal(b"")[:16] for _ in range(200)))
        os._exit(0)
    os.waitpid(child, 0)
    os.close(back)
    with os.fdopen(out, "rb") as pipe:
        theirs = pipe.read()
    ours = {sealer.seal(b"")[:16] for _ in range(1000)}
    assert len(theirs) == 3200
    assert not ours & {theirs[at : at + 16] for at in range(0, len(theirs), 16)}


def test_a_key_is_not_shown() -> None:
    assert KEY.encrypt.hex() not in repr(KEY)
    assert repr(KEY.mac_k) not in repr(KEY)


def test_the_derivation_is_the_published_one() -> None:
    # the third vector of RFC 7914 has N 16384, r 8, p 1
    key = derive("pleaseletmein", b"SodiumChloride", Scrypt(16384, 8, 1))
    assert (key.encrypt + key.mac_k + key.mac_r).hex().startswith("7023bdcb3afd7348461c06cd81fd38eb")


@pytest.mark.parametrize("numbers", [(1 << 30, 8, 1), (3, 8, 1), (0, 8, 1), (32768, 8, 1 << 20), (2, 0, 1), (2, 1, -1)])
def test_absurd_parameters_are_refused_before_any_work(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(errors.Damaged):
        Scrypt(*numbers)


# ------------------------------------------------------------------------------------------------------ keys
def test_keys_come_go_and_change() -> None:
    backend, master = MemoryBackend(), Key.new()
    first = keys.create(backend, "one", master, generated=True)
    with pytest.raises(errors.Refused, match="last key"):
        keys.remove(backend, first, in_use="")
    second = keys.create(backend, "two", master, generated=True)
    assert keys.find(backend, "two") == keys.Opened(second, master)
    with pytest.raises(errors.WrongPassword):
        keys.find(backend, "three")
    with pytest.raises(errors.Refused, match="in use"):
        keys.remove(backend, second, in_use=second)
    with pytest.raises(errors.NotFound):
        keys.remove(backend, "0" * 64, in_use=second)
    keys.remove(backend, first, in_use=second)
    with pytest.raises(errors.WrongPassword):
        keys.find(backend, "one")
    changed = keys.change_password(backend, keys.find(backend, "two"), "new", generated=True)
    assert changed.master == master
    assert [key.id for key in keys.listing(backend)] == [changed.id]
    with pytest.raises(errors.UsageError):
        keys.create(backend, "", master)


def test_a_passphrase_is_made_dear_and_a_generated_one_is_not() -> None:
    backend = MemoryBackend()
    keys.create(backend, "human", KEY)
    keys.create(backend, keys.generate_password(), KEY, generated=True)
    contents = sorted(backend.files.values(), key=lambda content: b'"p":4' in content)
    assert b'"N":32768,"r":8,"p":1' in contents[0]
    assert b'"N":65536,"r":8,"p":4' in contents[1]
    assert len({keys.generate_password() for _ in range(50)}) == 50


def test_a_damaged_key_file_does_not_hide_a_good_one() -> None:
    backend = MemoryBackend()
    keys.create(backend, "good", KEY, generated=True)
    for number, junk in enumerate((b"", b"{}", b"[1]", b'{"kdf":"scrypt","N":1073741824,"r":8,"p":1}', b"\xff")):
        backend.files[f"keys/{sha256(junk).hexdigest()}"] = junk
        backend.files[f"keys/{number:064x}"] = junk
    assert keys.find(backend, "good").master == KEY
    with pytest.raises(errors.Damaged):
        keys.find(backend, "bad")
    assert len(keys.listing(backend)) == 11


@given(st.data())
def test_a_changed_key_file_never_opens(data: st.DataObject) -> None:
    backend = MemoryBackend()
    plain = b'{"kdf":"scrypt","N":2,"r":1,"p":1,"salt":"","data":""}'
    changed = bytearray(plain)
    changed[data.draw(st.integers(0, len(plain) - 1))] = data.draw(st.integers(0, 255))
    backend.files[f"keys/{sha256(changed).hexdigest()}"] = bytes(changed)
    with pytest.raises((errors.Damaged, errors.WrongPassword)):
        keys.find(backend, "x")


# ---------------------------------------------------------------------------------------------------- config
def test_a_config_is_read_back() -> None:
    made = config.new()
    assert config.decode(config.encode(made)) == made
    assert config.is_irreducible(int(made.chunker_polynomial, 16))
    assert int(made.chunker_polynomial, 16).bit_length() == 54


def test_known_polynomials() -> None:
    assert config.is_irreducible(0x25B468838DCB75)  # the one in the format's document
    assert config.is_irreducible(0x3DA3358B4DC173)
    assert not config.is_irreducible(0x25B468838DCB75 ^ 2)
    assert not config.is_irreducible(1 << 53)
    small = [p for p in range(1 << 5, 1 << 6) if config.is_irreducible(p)]  # degree 5: there are six
    assert small == [0b100101, 0b101001, 0b101111, 0b110111, 0b111011, 0b111101]


def test_version_1_is_refused_and_junk_is_damage() -> None:
    with pytest.raises(errors.Unsupported, match="version 1"):
        config.decode(b'{"version":1,"id":"' + b"0" * 64 + b'","chunker_polynomial":"25b468838dcb75"}')
    for junk in (b"", b"\xff", b"[]", b'{"version":2,"id":"x","chunker_polynomial":"1"}'):
        with pytest.raises(errors.Damaged):
            config.decode(junk)
