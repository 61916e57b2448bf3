"""Archives of arrays: what NumPy writes is read, and no header is believed."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from sbs_train.contract.npz import DAMAGED, read_npz
from tests.bounded import bounded

DTYPES = ["u1", "i1", "<i8", ">i4", "f4", "f8", "f2", "?", "S3", "U2"]


@settings(max_examples=100, deadline=2000)
@given(
    arrays=st.dictionaries(
        st.text("ab/._é", min_size=1, max_size=8),
        st.sampled_from(DTYPES).flatmap(
            lambda kind: arrays_of.arrays(kind, arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
        ),
        max_size=4,
    ),
    packed=st.booleans(),
    fortran=st.booleans(),
)
def test_what_numpy_writes_is_read(arrays, packed, fortran, tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    arrays = {name: np.asfortranarray(array) if fortran else array for name, array in arrays.items() if name != "file"}
    with path.open("wb") as file:
        (np.savez_compressed if packed else np.savez)(file, **arrays)
    found = read_npz(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def header(shape, descr="'|u1'", length=None, version=1):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    width = 2 if version == 1 else 4
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + size.to_bytes(width, "little") + text


def npy(array, **options):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), **options)
    return buffer.getvalue()


def archive(*members, kind=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as file:
        for name, data in members:
            file.writestr(name, data)
    return buffer.getvalue()


HOSTILE = {
    "a bomb": archive(("a.npy", header("(3_000_000_000,)") + bytes(1 << 26))),
    "many small bombs": archive(*[(f"{n}.npy", header(f"({1 << 26},)") + bytes(1 << 26)) for n in range(17)]),
    "a shape that overflows": archive(("a.npy", header(f"({1 << 33}, {1 << 31})"))),
    "a shape of long numbers": archive(("a.npy", header(f"({'9' * 4000},)"))),
    "a negative shape": archive(("a.npy", header("(-1,)") + bytes(8))),
    "two negative sizes": archive(("a.npy", header("(-2, -4)") + bytes(8))),
    "a shape of truth": archive(("a.npy", header("(True,)") + b"x")),
    "a shape of texts": archive(("a.npy", header("('x',)"))),
    "no shape": archive(("a.npy", header("None"))),
    "an item of gigabytes": archive(("a.npy", header("(2,)", "'|S2000000000'"))),
    "an item that overflows": archive(("a.npy", header("(2,)", "'<U2000000000'"))),
    "objects": archive(("a.npy", npy(np.array([{}], dtype=object), allow_pickle=True))),
    "records": archive(("a.npy", npy(np.zeros(2, "u1,i4")))),
    "times": archive(("a.npy", npy(np.zeros(2, "M8[s]")))),
    "complex": archive(("a.npy", npy(np.zeros(2, "c8")))),
    "a header of gigabytes": archive(("a.npy", header("(1,)", length=(1 << 32) - 1, version=2))),
    "a header of calls": archive(("a.npy", header("__import__('os').getpid()"))),
    "nested brackets": archive(("a.npy", header("(" * 3000 + ")" * 3000))),
    "nested signs": archive(("a.npy", header("-" * 5000 + "1"))),
    "another version": archive(("a.npy", header("(1,)", version=9) + b"x")),
    "too short": archive(("a.npy", header("(9,)") + b"x")),
    "too long": archive(("a.npy", npy(np.zeros(2)) + b"x")),
    "cut in its header": archive(("a.npy", npy(np.zeros(2))[:9])),
    "twice": archive(("a.npy", npy(1)), ("a.npy", npy(2))),
    "no array": archive(("a.npy", npy(1)), ("a.txt", b"x")),
    "a pickle": archive(("a.npy", b"\x80\x04]\x94.")),
    "not an archive": b"PK\x03\x04 not an archive",
    "nothing": b"",
    "a single array": npy(np.zeros(2)),
    "a compression nobody has": archive(("a.npy", npy(np.zeros(99)))).replace(b"\x08\0", b"\x63\0"),
    "half": archive(("a.npy", npy(np.arange(999))))[:400],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", HOSTILE)
def test_an_archive_gets_no_more_than_it_holds(what, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(HOSTILE[what])
    with pytest.raises(DAMAGED):
        read_npz(path)
    said = bounded(read_npz, path)
    assert said.startswith(("raised: ", "refused: ")) and "MemoryError" not in said, said


@settings(max_examples=300, deadline=2000)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4), cut=st.integers(0, 60))
def test_altered_archives_are_read_whole_or_not_at_all(changes, cut, tmp_path_factory):
    array = np.arange(60).reshape(3, 20)
    raw = bytearray(archive(("a.npy", npy(array)), ("b.npy", npy(array)), kind=zipfile.ZIP_STORED))
    for place, byte in changes:
        raw[place % len(raw)] = byte
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    path.write_bytes(bytes(raw[: len(raw) - (cut if cut < 50 else 0)]))
    try:
        found = read_npz(path)
    except DAMAGED:
        return
    for values in found.values():
        np.testing.assert_array_equal(values, array)
