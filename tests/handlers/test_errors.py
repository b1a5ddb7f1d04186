"""What is a lack of memory and what only speaks of it; sentences without traces."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from polyhost_handlers.errors import (
    BadInput,
    LoadFailed,
    Unparseable,
    is_memory_short,
    is_out_of_memory,
    load_errors_named,
    memory_errors_translated,
    sentence_of,
)


class LibraryError(Exception):
    """As XGBoostError, MXNetError, onnxruntime's Fail: a class of the library's own."""


# Copied from the libraries themselves (see test_out_of_memory.py, which makes them say it), but for PyTorch.
REAL = [
    LibraryError("std::bad_alloc"),
    LibraryError("[ONNXRuntimeError] : 1 : FAIL : Load model from /opt/ml/m.onnx failed:std::bad_alloc"),
    LibraryError(
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. Name:'' Status "
        "Message: bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 64000000\n",
    ),
    LibraryError(
        'Traceback (most recent call last):\n  File "../src/storage/./cpu_device_storage.h", line 74\n'
        "MXNetError: Failed to allocate CPU Memory",
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)",
    ),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type float64"),
    MemoryError(),
]

# What Python, numpy and scikit-learn raise quotes what the client sent: it must not be able to say "evict".
INNOCENT = [
    ValueError("Found unknown categories ['std::bad_alloc'] in column 0 during transform"),
    ValueError("could not convert string to float: 'out of memory'"),
    ValueError("std::bad_alloc"),
    KeyError("Failed to allocate CPU Memory"),
    RuntimeError("the word 'std::bad_alloc' is not in the vocabulary"),
    RuntimeError("label: CUDA out of memory"),
    LibraryError("Check failed: memory layout mismatch"),
    LibraryError("cannot allocate memory-mapped file to a tensor"),
    OSError(errno.ENOENT, "Cannot allocate memory"),
    BadInput("Line 1, field 1: 'std::bad_alloc' is not a number"),
]


@pytest.mark.parametrize("error", REAL, ids=str)
def test_what_libraries_say_when_memory_is_short(error: Exception) -> None:
    """Each library's own words become a MemoryError, which the server answers with 507."""
    assert is_out_of_memory(error)
    with pytest.raises(MemoryError), memory_errors_translated():
        raise error


@pytest.mark.parametrize("error", INNOCENT, ids=str)
def test_what_only_speaks_of_memory(error: Exception) -> None:
    """All else passes as it is, whatever words are in it."""
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as raised, memory_errors_translated():
        raise error
    assert raised.value is error


def test_an_error_made_of_a_memory_error_is_one() -> None:
    """Customers' code wraps what it catches; our own sentences are never doubted."""
    for error, is_short in (ValueError("it cannot be loaded"), True), (Unparseable("it cannot be read"), False):
        error.__cause__ = MemoryError()
        assert is_out_of_memory(error) is is_short


def test_memory_is_asked_for_and_not_touched() -> None:
    """A gigabyte is looked for without being used; an absurd amount is not there."""
    before = _resident_bytes()
    assert not is_memory_short(1024**3)
    assert _resident_bytes() - before < 100 * 1024**2
    assert is_memory_short(2**62)
    assert is_memory_short(2**70)


def _resident_bytes() -> int:
    """The most so far: what was touched for a moment counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def test_a_damaged_artifact_that_asks_for_absurd_amounts_is_not_a_lack_of_memory() -> None:
    """A 507 would have the platform evict every other model, and then try the broken one again."""
    sentence = r"^Unable to load model: m.ubj: std::bad_alloc$"
    with pytest.raises(LoadFailed, match=sentence), load_errors_named("m.ubj", artifact_bytes=1000):
        raise LibraryError("std::bad_alloc")
    with pytest.raises(MemoryError), load_errors_named("m.ubj", artifact_bytes=2**60):
        raise LibraryError("std::bad_alloc")
    with pytest.raises(LoadFailed, match=r"^as it is$"), load_errors_named("m.ubj", artifact_bytes=1):
        raise LoadFailed("as it is")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("plain", "plain"),
        ("", "LibraryError"),
        (
            "[10:12:24] /workspace/src/data.cc:1173: Check failed: valid\nStack trace:\n  [bt] (0) x",
            "Check failed: valid",
        ),
        (
            'Traceback (most recent call last):\n  File "a.cc", line 1\nMXNetError: Check failed: ok\n',
            "MXNetError: Check failed: ok",
        ),
        (
            "simple_bind error. Arguments:\ndata: (1, 3)\nMXNetError: Error in a: [11:10:12] src/b.h:2: Check failed",
            "MXNetError: Error in a: Check failed",
        ),
        ("first\nsecond", "first"),
    ],
)
def test_a_library_in_one_sentence(text: str, sentence: str) -> None:
    """No stack trace, no place in somebody's source."""
    assert sentence_of(LibraryError(text)) == sentence
