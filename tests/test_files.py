"""Files appear whole or not at all, and damage is noticed."""

import os

import pytest
import torch

from prunelab.checkpoints import CorruptCheckpoint, load_checkpoint, save_checkpoint
from prunelab.files import atomic_write, require_folder, sha256


def test_write_makes_folders_and_replaces_content(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    atomic_write(path, "first")
    atomic_write(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "file"
    atomic_write(path, "old")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_folder_that_cannot_be_written_into_is_named_with_what_to_do(tmp_path):
    require_folder(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path / "new" / "folder") == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=f"nothing can be written into {folder} .*set PRUNELAB_DATA"):
            require_folder(folder)
    with pytest.raises(OSError, match=r"; allow it, or take another$"):
        require_folder(tmp_path / "file", instead="take another")


def test_sha256_of_the_empty_and_of_a_file(tmp_path):
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "file").touch()
    assert sha256(b"") == sha256(tmp_path / "file") == empty


def test_checkpoint_comes_back_as_it_was(tmp_path):
    state = {
        "weight": torch.randn(3, 3),
        "step": 7,
        "names": ["a"],
        "nested": {"mask": torch.ones(2, dtype=torch.bool)},
    }
    save_checkpoint(state, tmp_path / "checkpoint")
    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert torch.equal(loaded["weight"], state["weight"]) and loaded["step"] == 7 and loaded["names"] == ["a"]
    assert torch.equal(loaded["nested"]["mask"], state["nested"]["mask"])


def test_flipped_bit_anywhere_is_noticed(tmp_path):
    path = tmp_path / "checkpoint"
    save_checkpoint({"weight": torch.randn(100)}, path)
    whole = path.read_bytes()
    for position in (0, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CorruptCheckpoint, match="checkpoint is damaged"):
            load_checkpoint(path)


@pytest.mark.parametrize("length", [0, 10, 200])
def test_checkpoint_cut_short_is_noticed(tmp_path, length):
    path = tmp_path / "checkpoint"
    save_checkpoint({"weight": torch.randn(100)}, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CorruptCheckpoint):
        load_checkpoint(path)


class Evil:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_checkpoint_carrying_code_is_refused(tmp_path, capsys):
    save_checkpoint({"evil": Evil()}, tmp_path / "checkpoint")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_checkpoint(tmp_path / "checkpoint")
    assert "ran" not in capsys.readouterr().out
