"""Peak memory of loading: weights are read into their final place, so the peak is what serving needs anyway plus a small stage."""
import json
import re
import shutil
import struct

import pytest

from sqd_process import Sqd

LAYERS, HIDDEN, FFN, VOCAB, POSITIONS = 12, 768, 3072, 50272, 2048


def shapes():
    """Names and shapes of OPT-125m's tensors."""
    prefix = "model.decoder."
    yield prefix + "embed_tokens.weight", [VOCAB, HIDDEN]
    yield prefix + "embed_positions.weight", [POSITIONS + 2, HIDDEN]
    norms = [prefix + "final_layer_norm"]
    for i in range(LAYERS):
        layer = f"{prefix}layers.{i}."
        norms += [layer + "self_attn_layer_norm", layer + "final_layer_norm"]
        linears = {f"self_attn.{p}": (HIDDEN, HIDDEN) for p in ("q_proj", "k_proj", "v_proj", "out_proj")}
        for name, (rows, columns) in {**linears, "fc1": (FFN, HIDDEN), "fc2": (HIDDEN, FFN)}.items():
            yield f"{layer}{name}.weight", [rows, columns]
            yield f"{layer}{name}.bias", [rows]
    for norm in norms:
        yield norm + ".weight", [HIDDEN]
        yield norm + ".bias", [HIDDEN]


def write_model(path, demo_model):
    """An OPT-125m-shaped F16 checkpoint; every weight is 2^-7, which is all that memory cares about."""
    config = json.loads((demo_model / "config.json").read_text())
    config |= {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "word_embed_proj_dim": HIDDEN, "ffn_dim": FFN, "num_attention_heads": 12,
               "vocab_size": VOCAB, "max_position_embeddings": POSITIONS}
    (path / "config.json").write_text(json.dumps(config))
    shutil.copy(demo_model / "tokenizer.json", path)
    header, offset = {}, 0
    for name, shape in shapes():
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(path / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        block = struct.pack("<H", 0x2000) * (1 << 19)
        left = offset
        while left:
            left -= f.write(block[:min(left, len(block))])
    return offset


@pytest.mark.slow
def test_peak_memory(sqd_binary, demo_model, tmp_path):
    checkpoint = write_model(tmp_path, demo_model) / 2**20
    with Sqd(sqd_binary, "--model", tmp_path, "--listen", "127.0.0.1:0", "--kv-cache", "64MiB", "--max-context", "256", "--max-step-tokens", "64",
             "--max-sequences", "16") as s:
        sizes = s.find(r"weights ([0-9.]+) MiB, KV cache ([0-9.]+) MiB")
        weights, kv = float(sizes[1]), float(sizes[2])
        with open(f"/proc/{s.process.pid}/status") as f:
            peak = int(re.search(r"VmHWM:\s+(\d+) kB", f.read())[1]) / 1024
        print(f"checkpoint {checkpoint:.0f} MiB, weights {weights:.0f} MiB, KV cache {kv:.0f} MiB, peak RSS {peak:.0f} MiB")
        # activations and logits of a step, libraries, tokenizer, the loader's stage
        assert peak <= weights + kv + 64
