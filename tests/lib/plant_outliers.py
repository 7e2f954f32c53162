#!/usr/bin/env python3
"""Plants activation outliers in an OPT directory without changing what the model computes.

A share of the channels between two linear parts is made FACTOR times larger on the way out (norm weight and bias, or rows of v_proj
and fc1) and as much smaller on the way in (columns of the linears that read them). FACTOR is a power of two and touched tensors are
written as F32, so the new model's float logits are the old ones bit for bit, while its activations have the outliers of large models.
Standard library only.
"""
import argparse
import array
import json
import random
import shutil
import struct
from pathlib import Path

# site: the module whose outputs grow, the modules that read them
SITES = {
    "norm1": ("self_attn_layer_norm", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    "norm2": ("final_layer_norm", ["fc1"]),
    "v": ("self_attn.v_proj", ["self_attn.out_proj"]),
    "up": ("fc1", ["fc2"]),
}


def read_safetensors(path):
    raw = path.read_bytes()
    (n,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8:8 + n])
    header.pop("__metadata__", None)
    data = memoryview(raw)[8 + n:]
    return {name: (t["dtype"], t["shape"], bytes(data[slice(*t["data_offsets"])])) for name, t in header.items()}


def write_safetensors(path, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    order = sorted(tensors, key=lambda name: (tensors[name][0] != "F32", name))  # wide types first: aligned
    for name in order:
        dtype, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            f.write(tensors[name][2])


def as_floats(dtype, data):
    if dtype == "F32":
        return array.array("f", data)
    if dtype == "F16":
        return array.array("f", struct.unpack(f"<{len(data) // 2}e", data))
    if dtype == "BF16":
        widened = array.array("I", (h << 16 for h in array.array("H", data)))
        return array.array("f", widened.tobytes())
    raise SystemExit(f"expected a float tensor, found {dtype}")


def scale(tensors, name, pick, factor):
    """Multiplies the elements that pick(shape) yields."""
    dtype, shape, data = tensors[name]
    values = as_floats(dtype, data)
    for i in pick(shape):
        values[i] *= factor
    tensors[name] = ("F32", shape, values.tobytes())


def rows(channels):
    return lambda shape: (c * (shape[1] if len(shape) > 1 else 1) + k
                          for c in channels for k in range(shape[1] if len(shape) > 1 else 1))


def columns(channels):
    return lambda shape: (r * shape[1] + c for r in range(shape[0]) for c in channels)


def plant(tensors, layer, site, share, factor, rng):
    source, readers = SITES[site]
    base = next(name for name in tensors if name.endswith(f"layers.{layer}.{source}.weight"))
    prefix = base[:-len(f"{source}.weight")]
    n = tensors[base][1][0]
    channels = rng.sample(range(n), max(1, round(n * share)))
    scale(tensors, base, rows(channels), factor)
    if f"{prefix}{source}.bias" in tensors:
        scale(tensors, f"{prefix}{source}.bias", rows(channels), factor)
    for reader in readers:
        scale(tensors, f"{prefix}{reader}.weight", columns(channels), 1 / factor)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.01, help="of the channels (default 0.01)")
    parser.add_argument("--factor", type=float, default=64, help="a power of two (default 64)")
    parser.add_argument("--sites", default="norm1,norm2", help=f"of {','.join(SITES)} (default norm1,norm2)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text())
    if not config.get("do_layer_norm_before", True):
        raise SystemExit("a post-norm model cannot be rescaled at its norms")
    tensors = read_safetensors(args.model / "model.safetensors")
    rng = random.Random(args.seed)
    for layer in range(config["num_hidden_layers"]):
        for site in args.sites.split(","):
            plant(tensors, layer, site, args.share, args.factor, rng)
    args.out.mkdir(parents=True)
    for path in args.model.iterdir():
        if path.suffix in (".json", ".txt") and "index" not in path.name:
            shutil.copy(path, args.out / path.name)
    write_safetensors(args.out / "model.safetensors", tensors)


if __name__ == "__main__":
    main()
