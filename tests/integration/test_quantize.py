"""sqd quantize and sqd eval from the command line: exit codes, messages, output, and what a stopped run leaves behind."""
import json
import re
import shutil
import signal
import subprocess
import time

import pytest

from conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "logits"
TINY = GOLDEN / "hd64-f32"


def run(binary, *args):
    return subprocess.run([binary, *map(str, args)], capture_output=True, text=True, timeout=600)


@pytest.fixture
def sample(tmp_path):
    path = tmp_path / "sample.txt"
    path.write_text("the quick brown fox jumps\n\nover the lazy dog\n")
    return path


@pytest.mark.parametrize("command", ["quantize", "eval"])
def test_help(sqd_binary, command):
    done = run(sqd_binary, command, "--help")
    assert done.returncode == 0 and not done.stderr
    assert f"Usage: sqd {command}" in done.stdout


@pytest.mark.parametrize("args, word", [
    ((), "--model is missing"),
    (("--model", "x"), "--out is missing"),
    (("--model", "x", "--out", "y", "z"), "unexpected argument 'z'"),
    (("--model", "x", "--out", "y", "--alpha", "1.5"), "found '1.5'"),
    (("--model", "x", "--out", "y", "--alpha", "nan"), "--alpha"),
    (("--model", "x", "--out", "y", "--level", "o2"), "o2"),
    (("--model", "x", "--out", "y", "--folds", "some"), "expected all or paper"),
    (("--model", "x", "--out", "y", "--weights", "row"), "expected channel or tensor"),
    (("--model", "x", "--out", "y", "--passages", "0"), "found '0'"),
    (("--model", "x", "--out", "y", "--shard-bytes", "big"), "--shard-bytes"),
    (("--model", "x", "--out", "y", "--nonsense"), "see sqd quantize --help"),
])
def test_usage(sqd_binary, args, word):
    done = run(sqd_binary, "quantize", *args)
    assert done.returncode == 64 and not done.stdout
    assert word in done.stderr


def test_eval_usage(sqd_binary):
    for args, word in [(("--model", "x"), "--text is missing"), (("--model", "x", "--text", "y", "--scheme", "o2"), "o2"),
                       (("--model", "x", "--text", "y", "--scheme", "o9"), "found 'o9'"),
                       (("--model", "x", "--text", "y", "--head", "int4"), "found 'int4'")]:
        done = run(sqd_binary, "eval", *args)
        assert done.returncode == 64 and word in done.stderr


def test_missing_and_bad_input(sqd_binary, tmp_path, sample):
    out = tmp_path / "out"
    done = run(sqd_binary, "quantize", "--model", tmp_path / "none", "--out", out)
    assert done.returncode == 66 and "none" in done.stderr
    done = run(sqd_binary, "quantize", "--model", TINY, "--out", out)
    assert done.returncode == 66 and "--calibration" in done.stderr
    broken = tmp_path / "broken"
    shutil.copytree(TINY, broken)
    data = (TINY / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[:len(data) // 2])
    done = run(sqd_binary, "quantize", "--model", broken, "--out", out, "--calibration", sample)
    assert done.returncode == 65 and "model.safetensors" in done.stderr
    done = run(sqd_binary, "eval", "--model", TINY, "--text", tmp_path / "no.txt")
    assert done.returncode == 66 and "no.txt" in done.stderr
    assert not out.exists()


def test_report_and_written_directory(sqd_binary, tmp_path, sample):
    out = tmp_path / "out"
    done = run(sqd_binary, "quantize", "--model", TINY, "--out", out, "--calibration", sample, "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["verify_difference"] == 0 and report["passages"] == 2
    assert [fold["state"] for fold in report["folds"]] == ["applied"] * 4
    config = json.loads((out / "config.json").read_text())
    quant = config.pop("quantization_config")
    assert config == json.loads((TINY / "config.json").read_text())
    group = quant["config_groups"]["group_0"]
    ten = {"num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder", "observer",
           "observer_kwargs"}
    assert set(group["weights"]) == set(group["input_activations"]) == ten
    assert group["targets"] == ["Linear"] and quant["ignore"] == ["lm_head"]
    again = run(sqd_binary, "quantize", "--model", TINY, "--out", out, "--calibration", sample)
    assert again.returncode == 1 and "not empty" in again.stderr
    done = run(sqd_binary, "eval", "--model", out, "--text", sample, "--against", TINY)
    assert done.returncode == 0 and re.search(r"ratio \d\.\d+ \([+-]\d+\.\d+ %\)", done.stdout)


def test_the_same_input_gives_the_same_bytes(sqd_binary, tmp_path, sample):
    for name, threads in ("one", 1), ("two", 2):
        done = run(sqd_binary, "quantize", "--model", TINY, "--out", tmp_path / name, "--calibration", sample, "--threads", threads)
        assert done.returncode == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_post_norm_folds_are_skipped_aloud(sqd_binary, tmp_path, sample):
    model = tmp_path / "model"
    shutil.copytree(GOLDEN / "postnorm-f16", model)
    shutil.copy(GOLDEN / "bytes-tokenizer.json", model / "tokenizer.json")
    done = run(sqd_binary, "quantize", "--model", model, "--out", tmp_path / "out", "--calibration", sample)
    assert done.returncode == 0
    assert "self_attn_layer_norm -> q_proj, k_proj, v_proj skipped" in done.stderr


@pytest.mark.parametrize("sig, left", [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, 1)])
def test_a_stopped_run_leaves_nothing_under_out(sqd_binary, demo_model, tmp_path, sig, left):
    out = tmp_path / "out"
    process = subprocess.Popen([sqd_binary, "quantize", "--model", demo_model, "--out", out], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "calibrating" in line:
            break
    time.sleep(0.2)
    process.send_signal(sig)
    rest = process.stderr.read()
    code = process.wait(timeout=60)
    assert code == (-signal.SIGKILL if sig == signal.SIGKILL else 1)
    assert sig == signal.SIGKILL or "interrupted" in rest
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == left  # a killed run's hidden directory beside it
    assert all(path.name.startswith(".out.sqd-") for path in tmp_path.iterdir())
