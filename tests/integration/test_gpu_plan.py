"""`sqd serve --plan` against what the device's allocator was really asked for, and refusals of what does not fit."""
import json
import os
import re
import subprocess

import pytest

from sqd_process import Sqd, on_backend

pytestmark = pytest.mark.skipif(not os.environ.get("SQD_CUDA_LIBS"), reason="only softgpu tells what was allocated")

CONFIGURATIONS = {
    "as it comes": ("int8", []),
    "small": ("int8", ["--max-sequences", 3, "--max-step-tokens", 50, "--kv-cache", "3MiB", "--max-context", 100, "--head", "keep"]),
    "float": ("float", ["--max-sequences", 16, "--max-step-tokens", 33, "--max-context", 511, "--head", "int8"]),
}


def plan(binary, model, *settings, env=None):
    """(the plan, what softgpu saw of it)."""
    args, env = on_backend(["--model", model, *map(str, settings)], {"SG_TRACE": "1", **(env or {})})
    p = subprocess.run([binary, "serve", "--plan", "--json", *args], env=env, capture_output=True, text=True, timeout=120)
    assert p.returncode == 0, p.stderr
    return json.loads(p.stdout), p.stderr


def start(binary, model, *settings, env=None, **more):
    return Sqd(binary, "--model", model, "--listen", "127.0.0.1:0", *settings, env=env, **more)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_plan_is_right_to_the_byte(sqd_binary, int8_model, demo_model, name):
    kind, settings = CONFIGURATIONS[name]
    model = int8_model if kind == "int8" else demo_model
    planned, seen = plan(sqd_binary, model, *settings)
    assert planned["backend"] == "cuda"
    assert "softgpu:" not in seen, "a plan must not call the runtime"
    parts = ("weights_bytes", "kv_bytes", "activation_bytes", "workspace_bytes")
    assert sum(planned[p] for p in parts) == planned["total_bytes"] and all(planned[p] > 0 for p in parts)
    with start(sqd_binary, model, *settings, env={"SG_TRACE": "1"}) as s:
        ready = next(i for i, line in enumerate(s.lines) if "serve: ready" in line)
        held = re.findall(r"device memory: \S+, now (\d+) bytes in (\d+) allocations", "\n".join(s.lines[:ready]))
        assert s.complete("One", max_tokens=3, temperature=0)
    assert (planned["total_bytes"], planned["allocations"]) == tuple(map(int, held[-1]))
    later = re.findall(r"device memory: \S+, now (\d+) bytes", s.log)
    # requests took nothing more; at the end everything is given back
    assert max(map(int, later)) == planned["total_bytes"] and later[-1] == "0"


def test_plan_reads_no_weights(sqd_binary, demo_model, tmp_path):
    """Every matrix full of NaN, which a load refuses: a plan does not see it."""
    for file in demo_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole, _ = plan(sqd_binary, demo_model)
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    for name, tensor in json.loads(data[8:start]).items():
        if name != "__metadata__" and len(tensor["shape"]) == 2:
            first, end = tensor["data_offsets"]
            data[start + first:start + end] = b"\xff" * (end - first)
    weights.write_bytes(data)
    broken, _ = plan(sqd_binary, tmp_path)
    assert broken == whole
    with Sqd(sqd_binary, "--model", tmp_path, "--listen", "127.0.0.1:0", ready=False, expect_exit=65) as s:
        s.wait_for("NaN", 60)


def refusal(binary, model, memory, *settings):
    """The error of a start that does not fit."""
    s = start(binary, model, *settings, env={"SG_MEM_BYTES": str(memory)}, ready=False, expect_exit=65)
    with s:
        return s.wait_for(r"error serve: (GPU memory.*)", 60)[1]


def fits(binary, model, memory, *settings):
    with start(binary, model, *settings, env={"SG_MEM_BYTES": str(memory)}) as s:
        assert s.complete("One", max_tokens=3, temperature=0)


def room(planned, kv):
    """A device with room for everything planned but the cache, and for kv bytes of that."""
    return (planned["held_bytes"] - planned["kv_bytes"] + kv) * 64 // 63 + (2 << 20)


def test_cache_takes_what_is_left(sqd_binary, int8_model):
    planned, _ = plan(sqd_binary, int8_model)
    memory = room(planned, planned["kv_bytes"] // 3)
    with start(sqd_binary, int8_model, env={"SG_MEM_BYTES": str(memory)}) as s:
        blocks = int(s.find(r"\((\d+) blocks of 32 tokens\)")[1])
    assert planned["kv_blocks"] // 4 < blocks < planned["kv_blocks"] // 2


def test_too_large_cache_is_refused_with_the_size_that_fits(sqd_binary, int8_model):
    planned, _ = plan(sqd_binary, int8_model)
    memory = room(planned, planned["kv_bytes"] // 3)
    text = refusal(sqd_binary, int8_model, memory, "--kv-cache", str(planned["kv_bytes"]))
    most = re.search(r"set kv_cache to at most (\d+)", text)
    assert most, text
    fits(sqd_binary, int8_model, memory, "--kv-cache", most[1])


def test_too_long_context_is_refused_with_the_one_that_fits(sqd_binary, demo_model):
    planned, _ = plan(sqd_binary, demo_model)  # its cache is large beside what the device rounds to
    block = planned["kv_bytes"] // planned["kv_blocks"]
    memory = room(planned, 6 * block)  # of 16 that a sequence of 512 tokens needs
    text = refusal(sqd_binary, demo_model, memory)
    most = re.search(r"set max_context to at most (\d+)", text)
    assert most and 64 <= int(most[1]) < 512, text
    fits(sqd_binary, demo_model, memory, "--max-context", most[1])


def test_too_large_steps_are_refused_with_those_that_fit(sqd_binary, int8_model):
    settings = ["--max-step-tokens", 2048]
    large, _ = plan(sqd_binary, int8_model, *settings)
    small, _ = plan(sqd_binary, int8_model, "--max-step-tokens", 256)
    block = small["kv_bytes"] // small["kv_blocks"]
    memory = room(small, 20 * block)
    assert memory < large["held_bytes"] - large["kv_bytes"], "this test wants steps that are too large"
    text = refusal(sqd_binary, int8_model, memory, *settings)
    most = re.search(r"set max_step_tokens to at most (\d+) and max_sequences to at most (\d+)", text)
    assert most, text
    fits(sqd_binary, int8_model, memory, "--max-step-tokens", most[1], "--max-sequences", most[2])


def test_model_that_cannot_fit(sqd_binary, int8_model):
    planned, _ = plan(sqd_binary, int8_model)
    smallest, _ = plan(sqd_binary, int8_model, "--max-step-tokens", 16, "--max-sequences", 16)
    assert smallest["total_bytes"] < planned["total_bytes"]
    memory = smallest["workspace_bytes"] + smallest["weights_bytes"] // 2
    assert "no setting makes it fit" in refusal(sqd_binary, int8_model, memory)


def test_plan_as_a_table(sqd_binary, int8_model):
    args, env = on_backend(["--model", int8_model])
    p = subprocess.run([sqd_binary, "serve", "--plan", *args], env=env, capture_output=True, text=True, timeout=120)
    assert p.returncode == 0 and "total" in p.stdout and "on backend cuda" in p.stdout
    p = subprocess.run([sqd_binary, "serve", "--plan", "--model", int8_model, "--backend", "cpu"], capture_output=True, text=True, timeout=120)
    assert p.returncode == 0 and "on backend cpu" in p.stdout
    p = subprocess.run([sqd_binary, "serve", "--json", *args], env=env, capture_output=True, text=True, timeout=120)
    assert p.returncode == 64 and "--plan" in p.stderr
