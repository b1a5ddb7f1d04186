"""Archives made to take memory, time or the disk are refused before they do, whatever their sizes claim."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from polyhost.archives import Limits, UnpackingCancelled, UnpackingTooSlow, unpack
from polyhost.errors import ArchiveRefused
from support.packing import noise, tar, zipped
from support.tree import any_in

END = bytes(1024)


def entry(name: str, kind: bytes, data: bytes, claimed_bytes: int | None = None) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data) if claimed_bytes is None else claimed_bytes
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def pax(keyword: str, value: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return entry("pax", kind, pax_record(keyword, value))


def pax_record(keyword: str, value: bytes) -> bytes:
    record = b" " + keyword.encode() + b"=" + value + b"\n"
    length = len(record)
    while len(str(length)) + len(record) != length:
        length = len(str(length)) + len(record)
    return str(length).encode() + record


def model(data: bytes = b"abcd") -> bytes:
    return entry("model", tarfile.REGTYPE, data)


def sparse_map(fields: int) -> bytes:
    """GNU's sparse format 1.0, whose map stands before the data."""
    told = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.realsize": b"4"}
    header = entry("pax", tarfile.XHDTYPE, b"".join(pax_record(*one) for one in told.items()))
    return header + entry("model", tarfile.REGTYPE, f"{fields}\n".encode() + b"0\n1\n" * fields)


HUGE = 3 * 1024**2


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(pax("comment", b"a" * HUGE) + model(), id="PAX record"),
        pytest.param(pax("comment", b"a" * HUGE, tarfile.XGLTYPE) + model(), id="global PAX record"),
        pytest.param(entry("pax", tarfile.XHDTYPE, b"", 10**12), id="PAX record that claims a terabyte"),
        pytest.param(entry("name", tarfile.GNUTYPE_LONGNAME, b"a" * HUGE) + model(), id="long name"),
        pytest.param(entry("name", tarfile.GNUTYPE_LONGLINK, b"a" * HUGE) + model(), id="long link"),
        pytest.param(pax("comment", b"a" * 300_000) * 9 + model(), id="PAX records in a row"),
        pytest.param(sparse_map(HUGE // 2), id="sparse map"),
    ],
)
def test_what_stands_before_an_entry_is_refused_before_it_is_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content + END, 1))
    del content
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveRefused, match=r"name and attributes .* take more than 1048576 bytes"):
            unpack(tmp_path / "a.tar.gz", tmp_path / "to")
        assert tracemalloc.get_traced_memory()[1] < 2 * HUGE
    finally:
        tracemalloc.stop()


def test_global_records_do_not_add_up(tmp_path: Path) -> None:
    """Each is small; tarfile keeps all of them, and each entry gets a copy."""
    content = b"".join(pax(f"comment{n}", b"a" * 500_000, tarfile.XGLTYPE) + model() for n in range(4))
    (tmp_path / "a.tar").write_bytes(content + END)

    with pytest.raises(ArchiveRefused, match="its global PAX records are too long"):
        unpack(tmp_path / "a.tar", tmp_path / "to")


@pytest.mark.parametrize("size", [b"-512", b"-1000000", b"-9" * 40, b"abc", b"1e3", b"99999999999999999999999"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_sizes_that_are_no_sizes(size: bytes, compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """A negative one leads back to what was read: tarfile reads the same entries again and again."""
    content = pax("size", size) + entry("model", tarfile.REGTYPE, b"no header" * 100) + model() + END
    (tmp_path / "a.tar").write_bytes(compress(content))

    with pytest.raises(ArchiveRefused):
        unpack(tmp_path / "a.tar", tmp_path / "to", Limits(secs=10))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def pieces(places: bytes, size: bytes = b"10") -> bytes:
    """GNU's sparse format 0.1: `places` are offsets and lengths of what is no hole."""
    told = {"major": b"0", "minor": b"1", "name": b"thin", "size": size, "map": places}
    records = b"".join(pax_record(f"GNU.sparse.{name}", value) for name, value in told.items())
    return entry("pax", tarfile.XHDTYPE, records) + entry("thin", tarfile.REGTYPE, b"0123456789")


def test_the_pieces_of_a_file_with_holes(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(pieces(b"2,4,8,6,20,0", b"20") + model() + END)

    assert sorted(unpack(tmp_path / "a.tar", tmp_path / "to")) == ["model", "thin"]
    assert (tmp_path / "to" / "thin").read_bytes() == b"\0\0" + b"0123" + b"\0\0" + b"456789" + bytes(6)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(pieces(b"-5,10"), id="a piece before the file"),
        pytest.param(pieces(b"0,-10"), id="a negative piece"),
        pytest.param(pieces(b"0,5,0,5"), id="pieces that overlap"),
        pytest.param(pieces(b"0,10", b"5"), id="a piece behind the file"),
        pytest.param(pieces(b"0,10", b"-10"), id="a negative file"),
        pytest.param(pax("size", b"-512", tarfile.XGLTYPE) + model(), id="a negative size of all entries"),
        pytest.param(pax("size", b"2", tarfile.XGLTYPE) + model(), id="another size of all entries"),
    ],
)
def test_no_file_is_cut_to_a_size_that_is_none(content: bytes, tmp_path: Path) -> None:
    """tarfile takes them, and bytes are missing or misplaced. GNU tar fails on all but the last, which it cuts."""
    (tmp_path / "a.tar").write_bytes(content + model() + END)

    with pytest.raises(ArchiveRefused, match="an entry's size is wrong"):
        unpack(tmp_path / "a.tar", tmp_path / "to")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("damage", [lambda data: b"\xff" * 512 + data[512:], lambda data: data[:300]])
def test_a_damaged_header_is_not_the_end(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """tarfile takes it for the end: half of the files would be missing, and nobody would be told."""
    (tmp_path / "a.tar").write_bytes(model() + damage(entry("other", tarfile.REGTYPE, b"x")))

    with pytest.raises(ArchiveRefused, match="it is damaged, or was cut off, in the middle"):
        unpack(tmp_path / "a.tar", tmp_path / "to")


def test_an_archive_without_its_last_blocks_is_whole(tmp_path: Path) -> None:
    """Some packers leave the two blocks of zeros out; GNU tar takes that, too."""
    (tmp_path / "a.tar").write_bytes(model() + entry("other", tarfile.REGTYPE, b"x"))

    assert sorted(unpack(tmp_path / "a.tar", tmp_path / "to")) == ["model", "other"]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_members_of_a_compression_are_read_one_after_the_other(
    compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """As pigz and `cat` make them; what is cut off within one is refused."""
    content = model(noise(5000)) + END
    data = compress(content[:700]) + compress(content[700:])
    (tmp_path / "a.tar").write_bytes(data)
    (tmp_path / "cut.tar").write_bytes(data[:3000])

    assert unpack(tmp_path / "a.tar", tmp_path / "to")["model"].size == 5000
    with pytest.raises(ArchiveRefused, match=r"cut\.tar is not a readable archive"):
        unpack(tmp_path / "cut.tar", tmp_path / "cut")


def sparse(bytes_: int) -> bytes:
    info = tarfile.TarInfo("model")
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf())
    block[386:482] = bytes(96)
    block[483:495] = b"%011o\0" % bytes_
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_a_sparse_file_counts_as_what_it_unpacks_to(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(sparse(1024**3) + END)
    with pytest.raises(ArchiveRefused, match="unpacks to more than"):
        unpack(tmp_path / "a.tar", tmp_path / "to")

    (tmp_path / "b.tar").write_bytes(sparse(5000) + END)
    unpack(tmp_path / "b.tar", tmp_path / "to")
    assert (tmp_path / "to" / "model").read_bytes() == bytes(5000)


@pytest.mark.parametrize("name", ["a" * 256, "é" * 128, "/".join(["a" * 250] * 20)])
@pytest.mark.parametrize("pack", [lambda name: tar((name, b"x")), lambda name: zipped((name, b"x"))])
def test_names_over_the_file_systems_limit(pack: Callable[[str], bytes], name: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(pack(name))

    with pytest.raises(ArchiveRefused, match=r"a has a name that is longer than the file system allows\. Give"):
        unpack(tmp_path / "a", tmp_path / "to")


def directory_of(size_bytes: int) -> bytes:
    """A zip that claims a directory of that size."""
    file = zipped(("model", b"abcd"))
    end = file.rindex(b"PK\x05\x06")
    return file[:end] + file[end : end + 12] + struct.pack("<I", size_bytes) + file[end + 16 :]


def zip64_directory_of(size_bytes: int) -> bytes:
    file = zipped(("model", b"abcd"))
    end = file.rindex(b"PK\x05\x06")
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size_bytes, 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    last = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return file[:end] + record + locator + last


def encrypted() -> bytes:
    data = bytearray(zipped(("model", b"abcd")))
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(start) + flags] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    "content",
    [directory_of(2**31), directory_of(1), zip64_directory_of(2**62), zip64_directory_of(2**31), encrypted()],
    ids=["directory", "short directory", "zip64 lie", "zip64 directory", "encrypted"],
)
def test_zips_that_lie(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ArchiveRefused, match=r"^a\.zip "):
        unpack(tmp_path / "a.zip", tmp_path / "to")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_directory_of_many_entries_is_not_read(tmp_path: Path) -> None:
    """zipfile reads it at once and makes an object of each: 800,000 of them were 500 MB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("model", b"abcd")
    data = buffer.getvalue()
    at, end = data.index(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    record = data[at:end]
    count = 33 * 1024**2 // len(record)
    last = data[end : end + 12] + struct.pack("<2I", count * len(record), at) + data[end + 20 :]
    (tmp_path / "a.zip").write_bytes(data[:at] + record * count + last)

    with pytest.raises(ArchiveRefused, match=r"a\.zip has more than 100000 entries"):
        unpack(tmp_path / "a.zip", tmp_path / "to")


def test_unpacking_has_a_deadline(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(("model", b"x")))
    with pytest.raises(UnpackingTooSlow, match=r"not unpacked within 0 s\. Pack fewer .* --unpack-timeout-secs"):
        unpack(tmp_path / "a.tar", tmp_path / "to", Limits(secs=0))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


class OnceThereIsAFile(threading.Event):
    """Is set once there is a file in any folder of this one."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def is_set(self) -> bool:
        return any_in(self._folder, "*/*")


@pytest.mark.parametrize("form", ["many entries", "one large entry", "a zip"])
def test_unpacking_can_be_cancelled_at_any_entry(form: str, tmp_path: Path) -> None:
    """Here once the first of its files, or the first part of it, is there."""
    members = [("large", noise(4_000_000))] if form == "one large entry" else [(f"f{n}", b"x") for n in range(90)]
    (tmp_path / "a").write_bytes(zipped(*members) if form == "a zip" else tar(*members, mode="w"))
    with pytest.raises(UnpackingCancelled):
        unpack(tmp_path / "a", tmp_path / "in" / "to", cancelled=OnceThereIsAFile(tmp_path / "in"))

    assert list((tmp_path / "in").iterdir()) == []


def test_files_are_described_as_they_lie_there(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tar(("./code/x.py", b"old, longer"), ("code//x.py", b"pass"), ("m", b"")))
    files = unpack(tmp_path / "a.tar.gz", tmp_path / "to", file_mode=0o444)

    assert sorted(files) == ["code/x.py", "m"]
    status = (tmp_path / "to" / "code" / "x.py").stat()
    assert files["code/x.py"][2:] == (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    assert files["code/x.py"].sha256 == "d74ff0ee8da3b9806b18c877dbf29bbde50b5bd8e4dad7a3a725000feb82e8f1"
    assert oct(status.st_mode)[-3:] == "444"
