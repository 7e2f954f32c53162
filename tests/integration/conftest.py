"""Fixtures of the integration tests: the real binary (SQD = its path), the demo model quantised once, and a running server.

SQD_BUILD names the build in reports ("plain", "asan", "tsan"); slow builds get more time through SQD_SLOW.
SQD_BACKEND=cuda: every server runs on the GPU backend over softgpu, or over CUDA itself with SQD_CUDA_LIBS= (empty); test_gpu_*.py run then only.
Without it no test meets a GPU, not even one that this machine has.
"""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "lib"))

from sqd_process import Sqd  # noqa: E402

SOFTGPU = ROOT / "tests" / "softgpu" / "build"
ON_CUDA = os.environ.get("SQD_BACKEND") == "cuda"
collect_ignore_glob = [] if ON_CUDA else ["test_gpu_*.py"]
if ON_CUDA:
    os.environ.setdefault("SQD_CUDA_LIBS", str(SOFTGPU))
else:
    os.environ["SQD_GPU_MODULE"] = "/nonexistent"

DEMO = ROOT / "tests" / "models" / "demo-opt"


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: left out of the sanitizer runs")


@pytest.fixture(scope="session")
def sqd_binary() -> Path:
    path = os.environ.get("SQD")
    if not path:
        pytest.exit("set SQD to the path of the sqd binary", returncode=4)
    return Path(path).resolve()


@pytest.fixture(scope="session")
def harness(sqd_binary) -> Path:
    """The HTTP side over a stand-in engine that fails on demand (tests/lib/api_harness.c), of the same build."""
    path = sqd_binary if sqd_binary.name == "api_harness" else sqd_binary.parent.parent / "api" / "api_harness"
    if not path.exists():
        pytest.skip("this build has no api_harness")
    return path


@pytest.fixture(scope="session")
def demo_model() -> Path:
    return DEMO


@pytest.fixture(scope="session")
def int8_model(sqd_binary, tmp_path_factory) -> Path:
    """The demo model as `sqd quantize` makes it by default, or the directory SQD_MODEL."""
    if os.environ.get("SQD_MODEL"):
        return Path(os.environ["SQD_MODEL"])
    out = tmp_path_factory.mktemp("models") / "demo-int8"
    subprocess.run([sqd_binary, "quantize", "--backend", "cpu", "--model", DEMO, "--out", out], check=True, capture_output=True, timeout=900)
    return out


@pytest.fixture(scope="module")
def server(sqd_binary, int8_model):
    """A server that the tests of one module share."""
    with Sqd(sqd_binary, "--model", int8_model, "--served-name", "demo", "--listen", "127.0.0.1:0") as process:
        yield process
