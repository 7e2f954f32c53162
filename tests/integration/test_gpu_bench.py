"""`sqd bench` on the GPU backend, and the scripts that stand on it. On softgpu times mean nothing; what is printed must be whole."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sqd_process import on_backend

ROOT = Path(__file__).resolve().parent.parent.parent
STAGES = ["prefill 40", "decode B=1 at 40", "decode B=5 at 40"]
softgpu = pytest.mark.skipif(not os.environ.get("SQD_CUDA_LIBS"), reason="counts what softgpu counts")


def bench(binary, *args, env=None, code=0):
    _, env = on_backend([], env)
    p = subprocess.run([binary, "bench", *args], env=env, capture_output=True, text=True, timeout=600)
    assert p.returncode == code, p.stderr
    return p.stdout if code == 0 else p.stderr


def test_roof(sqd_binary):
    got = json.loads(bench(sqd_binary, "--roof", "--backend", "cuda", "--quick", "--samples", "1", "--json"))
    assert got["device"] and all(v > 0 for v in got["ceilings"].values())
    assert [(s["shape"], s["stage"]) for s in got["steps"]] == [(m, s) for m in ("tiny-opt", "tiny-llama") for s in STAGES]
    for s in got["steps"]:
        assert s["layers"] == 6 and s["f16_over_int8"] == pytest.approx(s["f16"]["ms"] / s["int8"]["ms"], rel=0.01)
        for side in ("int8", "f16"):
            rows = int(re.search(r"(?:prefill |B=)(\d+)", s["stage"])[1])
            assert s[side]["layers_measured"] == 2 and s[side]["read_share"] > 0 and s[side]["ops_share"] > 0
            assert s[side]["tokens_per_s"] == pytest.approx(1000 * rows / s[side]["ms"], rel=0.05)


def test_roof_as_a_table_one_side(sqd_binary):
    text = bench(sqd_binary, "--roof", "--backend", "cuda", "--quick", "--samples", "1", "--shapes", "tiny-opt", "--scheme", "w8a8", "--layers", "0")
    assert re.search(r"Ceilings, measured: [\d.]+ GB/s", text)
    rows = [line for line in text.splitlines() if line.startswith("tiny-opt")]
    assert len(rows) == 3 and "layers timed" not in text and all(" - " in line for line in rows)


@softgpu
def test_what_does_not_fit_is_left_out(sqd_binary):
    text = bench(sqd_binary, "--roof", "--backend", "cuda", "--quick", "--samples", "1", "--shapes", "opt-30b,tiny-opt", "--json",
                 env={"SG_MEM_BYTES": "100M"})
    steps = json.loads(text)["steps"]
    assert [s["side"] for s in steps[:2]] == ["int8", "f16"] and all("left_out" in s for s in steps[:2])
    assert [s["stage"] for s in steps[2:]] == STAGES


@pytest.mark.parametrize("args, word", [
    (["--layer", "opt-9b", "--stage", "prefill:8"], "unknown shape"),
    (["--layer", "tiny-opt"], "--stage"),
    (["--layer", "tiny-opt", "--stage", "decode:4"], "decode:ROWS:CONTEXT"),
    (["--layer", "tiny-opt", "--stage", "prefill:4096"], "2048 positions"),
    (["--roof", "--stage", "decode:4:8"], "--stage is of --layer"),
    (["--roof", "--vocabulary", "100"], "--vocabulary is of --layer"),
    (["--roof", "--backend", "tpu"], "cpu or cuda"),
    (["--roof", "--scheme", "int4"], "w8a8 or f16"),
])
def test_wrong_options(sqd_binary, args, word):
    codes = {"unknown shape": 66, "2048 positions": 65}
    assert word in bench(sqd_binary, *args, code=codes.get(word, 64))


@softgpu
def test_layer_model(sqd_binary, tmp_path):
    """scripts/gpu-model on tiny shapes: a layer is found, its launches are few, its bytes near what it needs."""
    figures = tmp_path / "figures.json"
    build = Path(sqd_binary).parent.parent
    p = subprocess.run([sys.executable, ROOT / "scripts/gpu-model", "--build", build, "--shapes", "tiny-opt,tiny-llama", "--stages",
                        "decode:1:200,prefill:64", "--json", figures], capture_output=True, text=True, timeout=600)
    assert p.returncode == 0, p.stdout + p.stderr
    got = json.loads(figures.read_text())
    assert got["label"] == "modelled, not measured" and len(got["layers"]) == 6
    for layer in got["layers"]:
        if layer["stage"].startswith("decode"):
            assert 2 <= len(layer["launches"]) <= 8
            assert 0.99 < layer["moved_over_needed"] < 1.1
    shown = [line for line in p.stdout.splitlines() if "floor" in line and "layer:" in line]
    assert len(shown) == 6 and all("modelled, not measured" in line for line in shown)
    # a limit that cannot be kept by shapes as small as these
    p = subprocess.run([sys.executable, ROOT / "scripts/gpu-model", "--build", build, "--shapes", "tiny-opt", "--stages", "decode:1:200",
                        "--check"], capture_output=True, text=True, timeout=600)
    assert p.returncode == 1 and "of the bandwidth floor" in p.stdout


def test_tune(sqd_binary):
    got = json.loads(bench(sqd_binary, "--tune", "--backend", "cuda", "--shapes", "tiny-opt", "--json"))
    linears = {m["linear"] for m in got["matmuls"]}
    assert len(linears) >= 4 and len(got["matmuls"]) == 9 * len(linears)
    for m in got["matmuls"]:
        timed = not got["device"].endswith("(softgpu)")
        assert (m["own_us"] > 0) == timed and m["rows"] <= 64
        assert m["taken"] == ("own" if not timed or m["own_us"] <= m["library_us"] else "library")
    assert "of --backend cuda" in bench(sqd_binary, "--tune", code=64)


@softgpu
def test_check_script(sqd_binary, tmp_path):
    """scripts/gpu-check from start to end, and that it sees what is wrong."""
    build = Path(sqd_binary).parent.parent
    command = [sys.executable, ROOT / "scripts/gpu-check", "--build", build, "--softgpu"]
    p = subprocess.run(command, env={**os.environ, "OUT": str(tmp_path)}, capture_output=True, text=True, timeout=900)
    assert p.returncode == 0, p.stdout + p.stderr
    got = json.loads((tmp_path / "gpu-check.json").read_text())
    assert got["failed"] == 0 and {r["part"] for r in got["results"]} == {"kernels", "tokens", "faults", "speed"}
    assert len(got["facts"]["steps"]) == 6
    # a device that fails early in every program
    p = subprocess.run(command, env={**os.environ, "OUT": str(tmp_path), "SG_FAULT": "40"}, capture_output=True, text=True, timeout=900)
    assert p.returncode == 1 and "FAILED" in p.stdout


def test_check_script_without_a_gpu(sqd_binary):
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    build = Path(sqd_binary).parent.parent
    p = subprocess.run([sys.executable, ROOT / "scripts/gpu-check", "--build", build], capture_output=True, text=True, timeout=60)
    assert p.returncode == 77 and "driver" in p.stderr
