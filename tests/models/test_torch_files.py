"""Files of torch: what numpy has no array of, and what would fill the memory, is one clear line."""

import importlib.util
import os
import sys
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.models import weight_files
from focaljax.models.weight_files import WeightsError, read_weights, write_weights
from tests.models.state_dicts import same


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("version", ["2.5.1", "1.13.0+cu117"])
def test_torch_that_would_run_code_is_refused_before_it_reads(tmp_path, monkeypatch, version):
    # 2.6 is the first in which `weights_only` runs none.
    old = types.ModuleType("torch")
    old.__version__ = version
    monkeypatch.setitem(sys.modules, "torch", old)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: old)
    path = tmp_path / "w.pth"
    path.write_bytes(b"anything")
    with pytest.raises(WeightsError, match=r"torch 2\.6 or later.*here is " + version.replace("+", r"\+")) as error:
        read_weights(path)
    assert "\n" not in str(error.value)


def test_bfloat16_survives(tmp_path, torch):
    arrays = {"w": np.asarray([[1.5, -2.25]], jnp.bfloat16), "scale": np.asarray(0.5, jnp.bfloat16)}
    write_weights(tmp_path / "w.pth", arrays)
    assert same(read_weights(tmp_path / "w.pth"), arrays)
    assert torch.load(tmp_path / "w.pth")["w"].tolist() == [[1.5, -2.25]]


def test_dtype_that_torch_lacks_is_one_line_and_leaves_no_file(tmp_path, torch):
    with pytest.raises(WeightsError, match=r"\.pth cannot hold w of dtype float8_e4m3fn; write \.safetensors"):
        write_weights(tmp_path / "w.pth", {"w": np.zeros(2, jnp.float8_e4m3fn)})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("is_legacy", [False, True])
def test_expanded_tensor_is_refused_before_it_takes_memory(tmp_path, torch, is_legacy):
    path = tmp_path / "w.pth"
    torch.save({"w": torch.zeros(1).expand(2**40)}, path, _use_new_zipfile_serialization=not is_legacy)
    with pytest.raises(WeightsError, match="bytes would unpack to 4398046511104") as error:
        read_weights(path)
    assert "\n" not in str(error.value)


def test_tensors_that_share_memory_are_read(tmp_path, torch):
    whole = torch.arange(6.0)
    torch.save({"whole": whole, "tied": whole, "part": whole[::2], "same": whole[:1].expand(3)}, tmp_path / "w.pth")
    expected = {"whole": np.arange(6), "tied": np.arange(6), "part": np.arange(0, 6, 2), "same": np.zeros(3)}
    assert same(read_weights(tmp_path / "w.pth"), {name: array.astype("f4") for name, array in expected.items()})


@pytest.mark.parametrize("kind", ["float8", "sparse", "quantized", "meta", "complex"])
def test_tensor_that_numpy_has_no_array_of_is_named(tmp_path, torch, kind):
    tensor = {
        "float8": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
        "sparse": lambda: torch.eye(3).to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
        "meta": lambda: torch.zeros(3, device="meta"),
        "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    }[kind]()
    path = tmp_path / "w.pth"
    torch.save({"w": tensor}, path)
    message = "asks for torch.serialization._get_layout" if kind == "sparse" else "the entry 'w' is a tensor of torch"
    with pytest.raises(WeightsError, match=message) as error:
        read_weights(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("is_legacy", [False, True])
def test_training_checkpoint_is_read(tmp_path, torch, is_legacy):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    others = {"optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(), "betas": {0.9, 0.999}}
    more = {"bf16": torch.zeros(2, dtype=torch.bfloat16), "parameter": torch.nn.Parameter(torch.ones(3))}
    if not is_legacy:  # which torch itself cannot read back in the old form
        more["uint16"] = torch.ones(2).to(torch.uint16)
    content = {"model": model.state_dict(), "device": torch.device("cpu"), "size": torch.Size([1, 2]), **others}
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not is_legacy)
    assert same(read_weights(path), {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    torch.save(more, path, _use_new_zipfile_serialization=not is_legacy)
    assert read_weights(path).keys() == more.keys()


NESTED, SHARED = b"N" + 500_000 * b"\x85", b"N" + 60 * b"2\x86"
HOSTILE = {
    "key": b"}%bNs.",
    "storage": b"(X\x07\0\0\0storagectorch\nFloatStorage\n%bX\x03\0\0\0cpuK\x01tQ.",
    "size": b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0%b)N)tR.",
    "set": b"c__builtin__\nset\n](%be\x85R.",
    "bytes": b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R.",
}


@pytest.mark.parametrize("tuples", [NESTED, SHARED], ids=["nested", "shared"])
@pytest.mark.parametrize("pickled", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("is_legacy", [False, True])
def test_pickle_that_torch_would_not_survive_never_reaches_it(tmp_path, monkeypatch, tuples, pickled, is_legacy):
    stand_in = types.ModuleType("torch")
    stand_in.__version__ = "2.6.0"
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: stand_in)
    pickled = b"\x80\x02" + pickled.replace(b"%b", tuples)
    path = tmp_path / "w.pth"
    if is_legacy:
        path.write_bytes(3 * b"\x80\x02K\x01." + pickled + b"\x80\x02].")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", pickled)
    with pytest.raises(WeightsError, match="names an entry by a tuple|tuples in tuples|asks for builtins.bytearray"):
        read_weights(path)


def test_archive_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path, torch, monkeypatch):
    path = tmp_path / "w.pth"
    torch.save({"w": torch.zeros(2**20)}, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    monkeypatch.setattr(weight_files, "_ALWAYS_UNPACKED", 2**20)
    with pytest.raises(WeightsError, match="bytes would unpack to 4194"):
        read_weights(path)
