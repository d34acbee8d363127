"""Event files hold every metric of every lane, in the format that TensorBoard reads."""

import struct

import pytest
from folders import make_folder, make_lines, write_folder
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from experiments.report.trackers import log_lanes
from experiments.runs.records import read_records

AXES = {"model.cell": ["lstm", "gru"], "dropout.rate": [0.0, 0.5]}
START = "_hparams_/session_start_info"


def crc32c(data):
    """Castagnoli's cyclic redundancy check, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    """The check as TFRecord files store it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder):
    """Reads the one event file of a lane, checking how each record is framed."""
    (path,) = folder.iterdir()
    assert path.name.startswith("events.out.tfevents.")
    content = path.read_bytes()
    while content:
        size, check = struct.unpack("<QI", content[:12])
        record, end = content[12 : 12 + size], content[12 + size : 16 + size]
        assert check == masked(content[:8])
        assert struct.unpack("<I", end) == (masked(record),)
        yield Event.FromString(record)
        content = content[16 + size :]


def scalars(folder):
    found = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def hparams(folder):
    (content,) = (
        value.metadata.plugin_data.content
        for event in events(folder)
        for value in event.summary.value
        if value.tag == START
    )
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return {
        name: value.string_value or value.number_value for name, value in values.items()
    }


def test_the_check_is_the_published_one():
    assert crc32c(b"123456789") == 0xE3069283


def test_every_lane_is_a_run_with_its_metrics_and_config(tmp_path):
    run = make_folder(tmp_path, AXES, 2, lambda s, seed: 0.2 + s["dropout.rate"] + seed)
    assert log_lanes(run, "tensorboard") == 8
    folders = sorted((tmp_path / "tensorboard").iterdir())
    lanes = read_records(run)
    assert len(folders) == len(lanes) == 8
    assert folders[3].name == "003 model.cell=lstm dropout.rate=0.5 seed=1"
    for folder, lane in zip(folders, lanes, strict=True):
        assert hparams(folder) == lane["setting"] | {"seeds": lane["seed"], "seed": 0}
        found = scalars(folder)
        assert found.keys() == lane["metrics"].keys()
        for name, values in lane["metrics"].items():
            epochs = [1, 2, 3, 4, 5, 6] if name == "train_nll" else [2, 4, 6]
            expected = dict(zip(epochs, values, strict=True))
            assert found[name] == pytest.approx(expected, rel=1e-6)


def test_what_is_not_finite_is_left_out(tmp_path):
    lines = make_lines({}, 1, lambda setting, seed: 0.2)
    lines[0]["metrics"]["test_nll"][1] = None
    log_lanes(write_folder(tmp_path, {}, lines), "tensorboard")
    found = scalars(tmp_path / "tensorboard" / "000 seed=0")
    assert list(found["test_nll"]) == [2, 6]


def test_writing_again_replaces(tmp_path):
    run = make_folder(tmp_path, AXES, 1, lambda setting, seed: 0.2)
    found = []
    for _ in range(2):
        assert log_lanes(run, "tensorboard") == 4
        name = "000 model.cell=lstm dropout.rate=0 seed=0"
        found.append(scalars(run / "tensorboard" / name))
        (run / "logged.json").unlink()
    assert found[0] == found[1]
    assert len(list((run / "tensorboard").iterdir())) == 4
