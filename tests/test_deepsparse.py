"""The optional engine: what is said where it is absent, broken or not itself, and what goes to it and back."""

import sys

import pytest
import torch
from conftest import with_statistics

from prunelab import deepsparse
from prunelab.deepsparse import DeepSparseError, through_deepsparse, unavailable
from prunelab.models import build_model
from prunelab.sparse_inference import backbone_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="made-up environments hold shell scripts")

# Where it really is, if it is.
HERE = unavailable()
# Stands in for the engine: takes what it takes, and refuses operators that it does not run itself.
ENGINE = """
import os, runpy, sys, types
import onnx, onnxruntime

class Engine:
    def __init__(self, model, batch_size, num_cores):
        assert onnx.load(model).opset_import[0].version == 17 and num_cores == 1
        onnx.checker.check_model(model)
        self.session, self.batch_size = onnxruntime.InferenceSession(model), batch_size

    def run(self, inputs):
        assert len(inputs[0]) == self.batch_size and os.environ["NM_DISABLE_ANALYTICS"] == "1"
        return self.session.run(None, {"images": inputs[0]})

sys.modules["deepsparse"] = types.SimpleNamespace(Engine=Engine)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A folder that is looked into; returns what puts a shell script there as its Python."""
    monkeypatch.setenv("PRUNELAB_DEEPSPARSE", str(tmp_path))

    def python(script, mode=0o755):
        (tmp_path / "bin").mkdir()
        path = tmp_path / "bin" / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(mode)

    return python


def network():
    torch.manual_seed(0)
    return backbone_of(with_statistics(build_model("resnet8", num_classes=3, image_size=16, width=0.25)))


def test_absent_environment_is_said_with_how_to_make_it(environment, tmp_path):
    assert unavailable() == f"no Python environment at {tmp_path}; prunelab/deepsparse.py says how to make it"
    assert "uv venv --python 3.11 .deepsparse" in deepsparse.__doc__


def test_without_the_variable_it_is_looked_for_at_the_root(monkeypatch, tmp_path):
    monkeypatch.delenv("PRUNELAB_DEEPSPARSE", raising=False)
    monkeypatch.setattr(deepsparse.paths, "ROOT", tmp_path)
    assert f"no Python environment at {tmp_path / '.deepsparse'}" in unavailable()


def test_python_without_the_engine_is_said(environment, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert "ended with code 1, and said: ModuleNotFoundError: No module named" in unavailable()


@pytest.mark.parametrize(
    "script, said",
    [
        ("echo hello; echo puzzled >&2", "gave no answer, and said: puzzled; it is no environment of DeepSparse"),
        ("exit 0", "gave no answer, and said: nothing"),
        ("echo 3", "ran a network of one layer, but wrongly: 3"),
        ("echo '{\"twice\": 3.0}'", "ran a network of one layer, but wrongly"),
        ("echo line one >&2; echo no AVX2 >&2; kill -9 $$", "ended with code -9, and said: no AVX2"),
        ("exec sleep 60", "had no answer within 0.5 seconds"),
    ],
)
def test_other_programs_are_no_engine(environment, monkeypatch, script, said):
    monkeypatch.setattr(deepsparse, "TIMEOUT", 0.5 if "sleep" in script else 60.0)
    environment(script)
    assert said in unavailable()


def test_file_that_is_no_program_is_said(environment):
    environment("exit 0", mode=0o644)
    assert "cannot be started: Permission denied; make the environment anew" in unavailable()


def test_network_goes_there_and_features_come_back(environment, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (tmp_path / "engine.py").write_text(ENGINE)
    environment(f'exec {sys.executable} {tmp_path / "engine.py"} "$@"')
    assert unavailable() is None
    backbone, images = network(), torch.randn(7, 3, 16, 16)
    run = through_deepsparse(backbone, images[:3])
    with torch.no_grad():
        expected = backbone(images)
    for n_images in (7, 2):  # the last batch is filled up
        features, seconds = run(images[:n_images].contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(features, expected[:n_images], rtol=1e-5, atol=1e-5)
        assert 0 < seconds < 60
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\nexit 7\n")
    with pytest.raises(DeepSparseError, match="ended with code 7"):
        run(images)


@pytest.mark.skipif(HERE is not None, reason=f"DeepSparse is optional: {HERE}")
def test_the_engine_itself_gives_the_features():
    pytest.importorskip("onnxscript")
    backbone, images = network(), torch.randn(5, 3, 16, 16)
    features, _ = through_deepsparse(backbone, images[:2])(images)
    with torch.no_grad():
        torch.testing.assert_close(features, backbone(images), rtol=1e-5, atol=1e-5)
