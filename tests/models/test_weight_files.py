"""Files of weights: every format gives back every byte; what is damaged, dangerous or missing is one clear line."""

import importlib.util
import os
import pickle
import re
import zipfile
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.models import weight_files
from focaljax.models.weight_files import WeightsError, read_weights, write_weights
from tests.models.state_dicts import same

FORMATS = ["safetensors", "npz"] + (["pth", "pt"] if importlib.util.find_spec("torch") else [])


@pytest.fixture
def state_dict():
    random = np.random.default_rng(0)
    return {
        "backbone.body.conv1.weight": random.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "transposed": random.normal(size=(2, 3, 4)).transpose(2, 0, 1),
        "half": random.normal(size=5).astype(np.float16),
        "bn1.num_batches_tracked": np.asarray(7, np.int64),
        "params/fpn/p6/bias": np.zeros((0, 3), np.float32),
        "file": np.ones(1, np.float32),
    }


def line_of(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", FORMATS)
def test_round_trip_keeps_names_dtypes_shapes_and_bytes(tmp_path, state_dict, suffix):
    path = tmp_path / f"weights.{suffix}"
    size = write_weights(path, state_dict)
    assert size == path.stat().st_size
    assert same(read_weights(path), state_dict)
    assert os.listdir(tmp_path) == [path.name]


def test_bfloat16_survives_in_safetensors_and_is_refused_by_npz(tmp_path):
    arrays = {"w": np.asarray([1.5, -2.25], jnp.bfloat16)}
    write_weights(tmp_path / "w.safetensors", arrays)
    assert same(read_weights(tmp_path / "w.safetensors"), arrays)
    with pytest.raises(WeightsError, match=r"cannot hold w of dtype bfloat16; write \.safetensors"):
        write_weights(tmp_path / "w.npz", arrays)
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_existing_file_is_kept_unless_told(tmp_path, state_dict):
    path = tmp_path / "w.npz"
    path.write_bytes(b"mine")
    with pytest.raises(WeightsError, match="exists already"):
        write_weights(path, state_dict)
    assert path.read_bytes() == b"mine"
    write_weights(path, state_dict, overwrite=True)
    assert same(read_weights(path), state_dict)


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path, state_dict):
    path = tmp_path / "w.npz"
    write_weights(path, state_dict)
    before = path.read_bytes()
    with pytest.raises(WeightsError):
        write_weights(path, {"a": np.zeros(3), "b": np.zeros(3, jnp.bfloat16)}, overwrite=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.npz"]


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pkl"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.97])
def test_truncated_file_is_one_line(tmp_path, state_dict, suffix, kept):
    path = tmp_path / f"w.{suffix}"
    if suffix == "pkl":
        path.write_bytes(pickle.dumps(state_dict))
    else:
        write_weights(path, state_dict)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(WeightsError, match=rf"w\.{suffix} cannot be read; it is damaged") as error:
        read_weights(path)
    line_of(error)


def test_flipped_byte_in_npz_is_noticed(tmp_path):
    path = tmp_path / "w.npz"
    write_weights(path, {"w": np.zeros(1000, np.float32)})
    content = bytearray(path.read_bytes())
    content[2000] ^= 255
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_weights(path)


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pkl"])
def test_file_of_another_kind_is_one_line(tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(b"<!DOCTYPE html><html>404 not found</html>" * 10)
    with pytest.raises(WeightsError, match="cannot be read") as error:
        read_weights(path)
    line_of(error)


def test_missing_file_and_unknown_ending_are_one_line(tmp_path, state_dict):
    with pytest.raises(WeightsError, match=r"w\.npz does not exist") as error:
        read_weights(tmp_path / "w.npz")
    line_of(error)
    with pytest.raises(WeightsError, match=r"must end in one of \.safetensors, \.npz, \.pth, \.pt, \.pkl"):
        read_weights(tmp_path / "w.h5")
    with pytest.raises(WeightsError, match=r"end in one of \.safetensors, \.npz, \.pth, \.pt"):
        write_weights(tmp_path / "w.pkl", state_dict)
    with pytest.raises(WeightsError, match="the folder .*nowhere does not exist"):
        write_weights(tmp_path / "nowhere" / "w.npz", state_dict)


def test_without_torch_a_pth_says_how_to_convert_it(tmp_path, state_dict, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = tmp_path / "model.pth"
    path.write_bytes(b"anything")
    with pytest.raises(WeightsError) as error:
        read_weights(path)
    line = line_of(error)
    program = re.search(r'python -c "(.*)"', line)[1]
    compile(program, "program", "exec")
    assert "weights_only=True" in program
    assert "'model.pth'" in program
    assert "'model.safetensors'" in program
    with pytest.raises(WeightsError, match=r"write \.safetensors"):
        write_weights(tmp_path / "other.pth", state_dict)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickle_of_arrays_in_plain_containers_is_read(tmp_path, state_dict, protocol):
    # As detectron2 writes it; protocol 2 is that of Python 2.
    path = tmp_path / "model_final.pkl"
    scalar = {"momentum": np.float32(0.5)}
    path.write_bytes(pickle.dumps({"model": state_dict | scalar, "__author__": "x"}, protocol=protocol))
    read = read_weights(path)
    assert read.pop("momentum") == 0.5
    assert same(read, state_dict)


class _Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickle_that_would_run_code_is_refused_before_it_runs(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"w": np.zeros(1), "x": _Harmful(tmp_path / "harm")}))
    with pytest.raises(WeightsError, match=r"it asks for posix\.mkdir; only numpy arrays") as error:
        read_weights(path)
    line_of(error)
    assert not (tmp_path / "harm").exists()


def test_npz_with_pickled_objects_is_refused(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, w=np.asarray([_Harmful(tmp_path / "harm")], object))
    with pytest.raises(WeightsError, match="cannot be read"):
        read_weights(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [[1, 2], {"w": "text"}, {"w": {"v": np.zeros(1)}}, {3: np.zeros(1)}])
def test_what_is_no_mapping_to_arrays_is_refused(tmp_path, content):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(WeightsError, match="expected"):
        read_weights(path)


def test_wrappings_of_training_checkpoints_come_off(tmp_path):
    path = tmp_path / "w.pkl"
    weights = {"module.conv1.weight": np.ones(2), "module.bn1.bias": np.ones(3)}
    path.write_bytes(pickle.dumps({"epoch": 3, "state_dict": weights}))
    assert read_weights(path).keys() == {"conv1.weight", "bn1.bias"}


class _Calls:
    """What an unpickler would call, and the state that it would set."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


RECONSTRUCT = np.zeros(1).__reduce__()[0]
# A type with a pointer in it whose flags say that there is none: numpy would take the bytes for an address.
LYING_DTYPE = _Calls(np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0))


@pytest.mark.parametrize(
    "value",
    [
        _Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), LYING_DTYPE, False, b"A" * 8)),
        _Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (2**60,), np.dtype("f4"), False, b"A" * 8)),
        _Calls(RECONSTRUCT, (np.ndarray, (2**40,), b"b")),
        _Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), 5),
        _Calls(np.ndarray, ((2**40,),)),
        np.array([None]),
        np.dtype("f4"),
    ],
)
def test_pickled_arrays_that_are_not_what_they_say_are_one_line(tmp_path, value):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"w": value}))
    with pytest.raises(WeightsError) as error:
        read_weights(path)
    line_of(error)


def test_attributes_of_a_pickled_ordered_dict_are_left_out(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(_Calls(OrderedDict, ([("w", np.ones(2))],), {"items": 5, "_metadata": {}})))
    assert same(read_weights(path), {"w": np.ones(2)})


# Opcodes of pickles: a text, a tuple of the last value, of the last two, the last value again.
TEXT, TUPLE1, TUPLE2, AGAIN = b"\x8c\x01a", b"\x85", b"\x86", b"2"
NESTED = TEXT + 3_000 * TUPLE1
DEEP = TEXT + 500_000 * TUPLE1
SHARED = TEXT + 60 * (AGAIN + TUPLE2)


@pytest.mark.parametrize("key", [NESTED, DEEP, SHARED], ids=["nested", "deep", "shared"])
@pytest.mark.parametrize(
    "put",
    [
        b"}%bNs.",
        b"}(%bNu.",
        b"(%bNd.",
        b"ccollections\nOrderedDict\n](%bN\x86e\x85R.",
        b"\x8f(%b\x90.",
        b"(%b\x91.",
        b"\x80\x02c__builtin__\nset\n](%be\x85R.",
    ],
    ids=["setitem", "setitems", "dict", "ordered_dict", "additems", "frozenset", "set"],
)
def test_nested_tuples_that_would_be_hashed_are_one_line(tmp_path, key, put):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x04" + put.replace(b"%b", key))
    with pytest.raises(WeightsError, match="names an entry by a tuple|no pickle, or one of more|it asks for") as error:
        read_weights(path)
    line_of(error)


@pytest.mark.parametrize("value", [NESTED, DEEP, SHARED], ids=["nested", "deep", "shared"])
@pytest.mark.parametrize(
    "put",
    [
        b"%b.",
        b"}X\x01\0\0\0w%bs.",
        b"cnumpy\ndtype\n%b\x85R.",
        b"c_codecs\nencode\nX\x01\0\0\0a%b\x86R.",
        b"cnumpy\ndtype\nX\x02\0\0\0f4\x85RK\x03%b\x86b.",
    ],
    ids=["content", "entry", "dtype", "encoding", "byte_order"],
)
def test_nested_tuples_in_the_place_of_something_else_are_one_line(tmp_path, value, put):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x02" + put.replace(b"%b", value))
    with pytest.raises(WeightsError) as error:
        read_weights(path)
    assert len(line_of(error)) < 1000


def test_deep_lists_and_dictionaries_beside_the_weights_do_no_harm(tmp_path):
    path = tmp_path / "w.pkl"
    weights = pickle.dumps({"w": np.ones(2)}, protocol=2)[2:-1]
    lists = 300_000 * b"]" + 299_999 * b"a"
    dictionaries = 100_000 * (b"}" + TEXT) + b"N" + 100_000 * b"s"
    path.write_bytes(
        b"\x80\x02}(X\x05\0\0\0model" + weights + b"X\x01\0\0\0l" + lists + b"X\x01\0\0\0d" + dictionaries + b"u."
    )
    assert same(read_weights(path), {"w": np.ones(2)})


def test_numbered_entries_beside_the_weights_are_read(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"model": {"w": np.ones(2)}, "optimizer": {"state": {0: {"step": 3}, 1: {}}}}))
    assert same(read_weights(path), {"w": np.ones(2)})


@pytest.mark.parametrize("put", [b"K\x05K\x06K\x07\x87", b"}", b"N}X\x0c\0\0\0__defaults__K\x05\x85s\x86"])
def test_pickle_sets_no_attribute_of_what_is_called_for_an_array(tmp_path, put):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x02cnumpy._core.numeric\n_frombuffer\n" + put + b"b.")
    with pytest.raises(WeightsError, match="it sets attributes of a function"):
        read_weights(path)
    test_pickle_of_arrays_in_plain_containers_is_read(tmp_path, {"w": np.ones(2)}, 5)


def test_pickle_that_numbers_an_object_two_billion_takes_no_memory(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    assert read_weights(path) == {}


@pytest.mark.parametrize("opcode", [b"\x95", b"\x8e", b"\x96", b"\x8d"])
def test_pickle_that_declares_more_bytes_than_it_has_is_refused(tmp_path, opcode):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x05" + opcode + (2**40).to_bytes(8, "little") + b"a.")
    with pytest.raises(WeightsError, match="it ends early"):
        read_weights(path)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_one_array_under_many_names_is_refused_before_it_takes_memory(tmp_path, monkeypatch, protocol):
    monkeypatch.setattr(weight_files, "_ALWAYS_UNPACKED", 2**20)
    path = tmp_path / "w.pkl"
    array = np.zeros(2**16)
    path.write_bytes(pickle.dumps({str(k): array for k in range(5)}, protocol=protocol))
    assert len(read_weights(path)) == 5  # as a model's two names for one weight
    path.write_bytes(pickle.dumps({str(k): array for k in range(500)}, protocol=protocol))
    with pytest.raises(WeightsError, match="bytes would unpack to"):
        read_weights(path)


def test_a_list_of_entries_is_that_of_one_dictionary(tmp_path):
    path = tmp_path / "w.pkl"
    pairs = [("w", np.ones(2))]
    once, again = _Calls(OrderedDict, (pairs,)), _Calls(OrderedDict, (pairs,))
    path.write_bytes(pickle.dumps({"state_dict": once, "again": again}))
    assert same(read_weights(path), {"w": np.ones(2)})
    path.write_bytes(pickle.dumps({"once": once, "state_dict": again}))
    assert read_weights(path) == {}


def test_archive_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", bytes(2**24))
    with pytest.raises(WeightsError, match="the entry 'w' is a bytes"):  # small enough to be looked at
        read_weights(path)
    monkeypatch.setattr(weight_files, "_ALWAYS_UNPACKED", 2**23)
    with pytest.raises(WeightsError, match="would unpack to 16777216"):
        read_weights(path)
