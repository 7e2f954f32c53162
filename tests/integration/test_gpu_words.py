"""What sqd says and does with and without a GPU, its driver, CUDA's libraries and the module: plain words, the CPU where it may, exit code 69 where not."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SOFTGPU
from sqd_process import Sqd

UNAVAILABLE = 69


@pytest.fixture(scope="module")
def module(sqd_binary):
    path = sqd_binary.parent.parent / "cuda" / "libsqd-cuda.so"
    if not path.exists():
        pytest.skip("this build has no GPU module")
    return path


@pytest.fixture(scope="module")
def without_cuda():
    """A command prefix: a mount namespace in which the loader knows of no CUDA library."""
    enter = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    prefix = [*enter, "sh", "-c", 'mount --bind /dev/null /etc/ld.so.cache && exec "$@"', "sh"]
    look = "import ctypes\ntry:\n    ctypes.CDLL('libcudart.so.13')\nexcept OSError as e:\n    print(e)"
    seen = subprocess.run([*prefix, sys.executable, "-c", look], capture_output=True, text=True)
    if seen.returncode or "cannot open shared object file" not in seen.stdout:
        pytest.skip(f"CUDA's libraries cannot be hidden here: {seen.stdout}{seen.stderr}")
    return prefix


def environment(**settings):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SG_") and k not in ("LD_LIBRARY_PATH", "SQD_GPU_MODULE")}
    return {**kept, **{k: str(v) for k, v in settings.items()}}


SOFT = {"LD_LIBRARY_PATH": SOFTGPU}


def serve_refused(binary, model, *args, env, prefix=()):
    """`serve --backend cuda` that must not start: its exit status and its words."""
    done = subprocess.run([*prefix, str(binary), "serve", "--model", str(model), "--listen", "127.0.0.1:0", "--backend", "cuda", *args],
                          capture_output=True, text=True, timeout=120, env=env)
    return done.returncode, done.stderr


def serve_auto(binary, model, env, prefix=()):
    """What `serve --backend auto`, which must serve, logs of its backend."""
    with Sqd(binary, "--model", model, "--listen", "127.0.0.1:0", "--backend", "auto", env=env, prefix=prefix, inherit=False) as s:
        assert s.complete("And it came to pass", max_tokens=4)
        return s.find(r"(backend .*)")[1]


def check(binary, model, env, words, prefix=()):
    """No usable GPU: auto takes the CPU and says why, cuda is refused with the same words."""
    line = serve_auto(binary, model, env, prefix)
    assert re.match(r"backend cpu \(.*\): ", line) and re.search(words, line), line
    status, text = serve_refused(binary, model, env=env, prefix=prefix)
    assert status == UNAVAILABLE and "backend cuda: " in text and re.search(words, text), (status, text)
    done = subprocess.run([*prefix, str(binary), "eval", "--backend", "cuda", "--model", str(model), "--text", str(ROOT / "README.md")],
                          capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == UNAVAILABLE and re.search(words, done.stderr), done.stderr


def test_no_module(sqd_binary, int8_model):
    check(sqd_binary, int8_model, environment(SQD_GPU_MODULE="/nonexistent/m.so", **SOFT), r"no GPU module at /nonexistent/m\.so")


def test_not_installed(sqd_binary, int8_model, tmp_path):
    """Outside of its build folder the program looks where the module would be installed."""
    binary = tmp_path / "sqd"
    shutil.copy(sqd_binary, binary)
    check(binary, int8_model, environment(**SOFT), r"no GPU module is installed \(/.*/sqd/libsqd-cuda\.so\)")


def test_installed_elsewhere(sqd_binary, module, int8_model, tmp_path):
    """A module is found by name, too; with the libraries there, auto takes the GPU."""
    binary = tmp_path / "sqd"
    shutil.copy(sqd_binary, binary)
    shutil.copy(module, tmp_path / "m.so")
    line = serve_auto(binary, int8_model, environment(SQD_GPU_MODULE=tmp_path / "m.so", **SOFT))
    assert re.match(r"backend cuda \(.*H200.*\): ", line) and "before the CPU" in line, line


def test_no_libraries(sqd_binary, module, int8_model, without_cuda):
    check(sqd_binary, int8_model, environment(), r"CUDA libraries not found \(libcudart\.so\.13\)", without_cuda)


def test_no_cublas(sqd_binary, module, int8_model, without_cuda, tmp_path):
    (tmp_path / "libcudart.so.13").symlink_to(SOFTGPU / "libcudart.so.13")
    check(sqd_binary, int8_model, environment(LD_LIBRARY_PATH=tmp_path), r"CUDA libraries not found \(libcublasLt\.so\.13\)", without_cuda)


@pytest.mark.parametrize("settings, words", [
    ({"SG_DRIVER": "none"}, "no NVIDIA driver"),
    ({"SG_DEVICES": "0"}, "no NVIDIA GPU"),
    ({"SG_DEVICE": "t4"}, r"GPU 0 \(Tesla T4.*: this build has no code for this GPU's architecture"),  # the tests' build has it for 8.0 and later
])
def test_no_device(sqd_binary, module, int8_model, settings, words):
    check(sqd_binary, int8_model, environment(**SOFT, **settings), words)


STUB = """
struct m { unsigned abi, bytes; const char *version; void *f[3]; };
static const struct m m = {%d, sizeof(struct m), "0", {0, 0, 0}};
const void *%s(void) { return &m; }
"""


@pytest.mark.parametrize("source, words", [
    (STUB % (999, "sqd_gpu_module"), "does not fit this program: interface 999"),
    (STUB % (1, "something_else"), "is no GPU module of sqd"),
    (None, "cannot be loaded: .*(too short|invalid ELF header)"),
])
def test_wrong_module(sqd_binary, int8_model, tmp_path, source, words):
    path = tmp_path / "m.so"
    if source:
        (tmp_path / "m.c").write_text(source)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, tmp_path / "m.c"], check=True)
    else:
        path.write_text("this is no library")
    check(sqd_binary, int8_model, environment(SQD_GPU_MODULE=path), words)


def test_as_configured(sqd_binary, module, int8_model):
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0", "--backend", "cuda", env=environment(**SOFT), inherit=False) as s:
        assert re.search(r"backend cuda \(.*\) as configured", s.log)
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0", "--backend", "cpu", env=environment(**SOFT), inherit=False) as s:
        assert re.search(r"backend cpu \(.*\) as configured", s.log)


def test_eval_agrees(sqd_binary, module, int8_model, demo_model, tmp_path):
    """The same perplexity on both backends, and calibration on the GPU gives the model that the CPU's gives, nearly."""
    text = tmp_path / "text.txt"
    text.write_text((demo_model / "heldout.txt").read_text()[:6000])
    figures = {}
    for backend in ("cpu", "cuda"):
        done = subprocess.run([sqd_binary, "eval", "--backend", backend, "--model", int8_model, "--text", text, "--head", "int8", "--json"],
                              capture_output=True, text=True, timeout=600, env=environment(**SOFT))
        assert done.returncode == 0 and f"backend {backend} " in done.stderr, done.stderr
        figures[backend] = json.loads(done.stdout)
    assert figures["cpu"]["perplexity"] == pytest.approx(figures["cuda"]["perplexity"], rel=1e-6)
