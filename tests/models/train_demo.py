"""Trains the demo model: text out of Debian packages -> tokenizer -> a 6M-parameter OPT -> a Hugging Face directory.

Run it through scripts/train-demo, which makes the Python environment. demo_text.py beside this file gives the text; the
rest stands here in the order it runs: tokenizer, model, training, the directory and its check against transformers.
"""

import argparse
import json
import math
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from demo_text import PACKAGES, PROMPTS, Doc, fetch, notices, read_all, split, unit_hash

VOCAB, CONTEXT, HIDDEN, LAYERS, HEADS, FFN = 4096, 512, 256, 6, 4, 1024
BOS, PAD = 2, 1  # OPT starts and ends every text with </s>
POSITION_OFFSET = 2  # OPT keeps two rows of its position table unused
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
# Calibration passages per source: 128, literature first as in the demo's prompts.
CALIBRATION = {
    "r-cran-janeaustenr": 32, "sword-text-kjv": 32, "sword-text-web": 16, "postgresql-doc-15": 24,
    "python3.11-doc": 16, "dict-jargon": 4, "golang-github-andybalholm-brotli-dev": 2, "dict-devil": 2,
}


# ---- tokenizer and token streams ----

def train_tokenizer(train: list[Doc]) -> Tokenizer:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=SPECIALS, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(("\n".join(d.paragraphs) for d in train), trainer)
    tok.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", BOS)])
    return tok


def encode(tok: Tokenizer, text: str) -> list[int]:
    return tok.encode(text, add_special_tokens=False).ids


def passages(tok: Tokenizer, docs: list[Doc], limit: int) -> list[str]:
    """Runs of whole sentences of at most `limit` tokens; a newline between paragraphs, as in training."""
    out = []
    for doc in docs:
        text, size = "", 0
        for paragraph in doc.paragraphs:
            for i, sentence in enumerate(re.split(r"(?<=[.!?]) (?=[A-Z\"'])", paragraph)):
                piece = sentence if not text else (" " if i else "\n") + sentence
                cost = len(encode(tok, piece))
                if size + cost > limit:
                    out.append(text)
                    text, piece, size = "", sentence, 0
                    cost = len(encode(tok, piece))
                if cost <= limit:
                    text, size = text + piece, size + cost
        out.append(text)
    return [p for p in out if len(p) >= 80]


def calibration(tok: Tokenizer, train: list[Doc]) -> list[str]:
    """256 tokens from each of 128 training units, in order of the unit's hash; the first half of each source's first,
    so that the first 64 passages are a fair smaller set."""
    halves: tuple[list[str], list[str]] = ([], [])
    for source, count in CALIBRATION.items():
        chosen: list[str] = []
        for doc in sorted((d for d in train if d.source == source), key=unit_hash):
            run = passages(tok, [doc], 256)[:1]
            # Dictionary entries are short; the rest must nearly fill their 256 tokens.
            if run and len(chosen) < count and (source.startswith("dict-") or len(encode(tok, run[0])) > 160):
                chosen += run
        halves[0].extend(chosen[:count // 2])
        halves[1].extend(chosen[count // 2:])
    return halves[0] + halves[1]


def stream(tok: Tokenizer, docs: list[Doc]) -> tuple[np.ndarray, np.ndarray]:
    """All tokens of the documents, each document behind </s>, and the positions where paragraphs start."""
    newline = encode(tok, "\n")
    ids, starts = [], []
    for doc in docs:
        ids.append(BOS)
        for i, e in enumerate(tok.encode_batch(doc.paragraphs, add_special_tokens=False)):
            ids.extend(newline if i else [])
            starts.append(len(ids))
            ids.extend(e.ids)
    return np.array(ids, np.uint16), np.array(starts)


class Sampler:
    """Windows of at most CONTEXT + 1 tokens. Their starts lie CONTEXT apart from a random first one, each source its weight times a pass, in random order.

    Half of the windows are moved back to the start of a paragraph and opened by </s>, which is how a prompt looks.
    """

    def __init__(self, tok: Tokenizer, train: list[Doc], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.streams = [(*stream(tok, [d for d in train if d.source == s]), w) for s, (w, _) in PACKAGES.items()]
        self.queue: list[tuple[int, int]] = []

    def refill(self) -> None:
        for which, (ids, _, weight) in enumerate(self.streams):
            last = len(ids) - CONTEXT - 1
            begins = [b for _ in range(2) for b in range(self.rng.integers(min(CONTEXT, last)), last, CONTEXT)]
            count = round(len(begins) / 2 * weight)
            first, second = begins[:len(begins) // 2], begins[len(begins) // 2:]
            self.rng.shuffle(first)
            self.rng.shuffle(second)
            self.queue += [(which, b) for b in (first + second)[:count]]
        self.rng.shuffle(self.queue)

    def batch(self, rows: int, length: int) -> torch.Tensor:
        out = np.empty((rows, length + 1), np.int64)
        for row in out:
            if not self.queue:
                self.refill()
            which, begin = self.queue.pop()
            ids, starts, _ = self.streams[which]
            if self.rng.random() < 0.5:
                begin = max(int(starts[max(np.searchsorted(starts, begin, "right") - 1, 0)]) - 1, 0)
                row[:] = ids[begin:begin + length + 1]
                row[0] = BOS
            else:
                row[:] = ids[begin:begin + length + 1]
        return torch.from_numpy(out)


# ---- model and training ----

def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:  # each [B,HEADS,T,HIDDEN/HEADS]
    """Causal attention. On a CPU, blocks of queries against the keys they may see beat torch's kernel by half."""
    t, block, out = q.shape[2], 128, []
    if q.is_cuda or t % block:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    future = torch.full((block, block), -math.inf, dtype=q.dtype).triu(1)
    for end in range(block, t + 1, block):
        scores = (q[:, :, end - block:end] * q.shape[3] ** -0.5) @ k[:, :, :end].transpose(2, 3)
        scores = scores + F.pad(future, (end - block, 0))
        out.append(scores.softmax(-1).to(q.dtype) @ v[:, :, :end])
    return torch.cat(out, 2)


class Block(torch.nn.Module):
    """OPT's decoder layer: norm before attention and before the ReLU MLP, biases everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn_layer_norm = torch.nn.LayerNorm(HIDDEN)
        self.qkv = torch.nn.Linear(HIDDEN, 3 * HIDDEN)  # one matmul here, three tensors in the file
        self.out_proj = torch.nn.Linear(HIDDEN, HIDDEN)
        self.final_layer_norm = torch.nn.LayerNorm(HIDDEN)
        self.fc1 = torch.nn.Linear(HIDDEN, FFN)
        self.fc2 = torch.nn.Linear(FFN, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B,T,HIDDEN] -> the same
        b, t, _ = x.shape
        q, k, v = self.qkv(self.self_attn_layer_norm(x)).view(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out_proj(attend(q, k, v).transpose(1, 2).reshape(b, t, HIDDEN))
        return x + self.fc2(F.relu(self.fc1(self.final_layer_norm(x))))


class Opt(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(VOCAB, HIDDEN)
        self.embed_positions = torch.nn.Embedding(CONTEXT + POSITION_OFFSET, HIDDEN)
        self.layers = torch.nn.ModuleList(Block() for _ in range(LAYERS))
        self.final_layer_norm = torch.nn.LayerNorm(HIDDEN)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.zeros_(p)
            elif name.startswith("embed"):
                torch.nn.init.normal_(p, std=0.02)
            elif p.dim() == 2:
                # What writes to the residual stream starts smaller, the more layers write to it.
                into_residual = "out_proj" in name or "fc2" in name
                torch.nn.init.normal_(p, std=0.04 / (math.sqrt(2 * LAYERS) if into_residual else 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:  # [B,T] -> logits [B,T,VOCAB]
        positions = torch.arange(ids.shape[1], device=ids.device) + POSITION_OFFSET
        x = self.embed_tokens(ids) + self.embed_positions(positions)
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.final_layer_norm(x), self.embed_tokens.weight)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal: every direction of a weight matrix moves at the same rate.

    Needs about half of AdamW's tokens for the same loss on a model of this size. The polynomial of five steps drives all singular
    values towards 1 (K. Jordan et al., 2024).
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @staticmethod
    def orthogonal(g: torch.Tensor) -> torch.Tensor:
        x = g.bfloat16()
        x = x.T if x.shape[0] > x.shape[1] else x
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return (x.T if g.shape[0] > g.shape[1] else x).float()

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                velocity.mul_(group["momentum"]).add_(p.grad)
                update = self.orthogonal(p.grad + group["momentum"] * velocity)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * math.sqrt(max(1, p.shape[0] / p.shape[1])))


def loss_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats over all positions of [B,T+1] ids."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model(ids[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def train(model: Opt, sampler: Sampler, args: argparse.Namespace, save) -> dict:
    """Muon for the matrices and AdamW for the rest, over the time (or the steps) given; calls `save` once early on.

    The schedule follows the clock, so that training ends on time on a machine whose speed varies.
    """
    device = next(model.parameters()).device
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and not n.startswith("embed")]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or n.startswith("embed")]
    # peak rates; both follow the same schedule
    optimizers = [(Muon(matrices, lr=0, weight_decay=0.1), 10 * args.lr),
                  (torch.optim.AdamW(others, lr=0, betas=(0.9, 0.95), weight_decay=0.0, fused=True), 2 * args.lr)]
    run = torch.compile(model) if args.compile else model
    budget, begun, step, average, saved = args.minutes * 60, time.monotonic(), 0, None, False
    while True:
        elapsed = time.monotonic() - begun
        done = step / args.steps if args.steps else elapsed / budget
        if done >= 1:
            break
        # constant, then straight down to zero over the last 60 %
        schedule = min(1, (step + 1) / 100) * min(1, max((1 - done) / 0.6, 0.002))
        for opt, peak in optimizers:
            for group in opt.param_groups:
                group["lr"] = schedule * peak
        # short windows first: cheaper, and more texts per step; all positions are trained in the second half
        length = CONTEXT if done > 0.5 else CONTEXT // 4
        loss = loss_of(run, sampler.batch(args.rows * CONTEXT // length, length).to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt, _ in optimizers:
            opt.step()
            opt.zero_grad()
        step += 1
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        if step % 500 == 0:  # so that an hour is not lost to a fault in what comes after
            torch.save(model.state_dict(), args.work / "weights.pt")
        if step % 50 == 0:
            elapsed = time.monotonic() - begun
            print(f"step {step} {done:6.1%} loss {average:.3f} rate {schedule:.3f} "
                  f"{step * args.rows * CONTEXT / elapsed:,.0f} tokens/s", flush=True)
        if not saved and elapsed > args.first_save * 60:
            saved = True
            save({"steps": step, "tokens": step * args.rows * CONTEXT, "seconds": elapsed, "unfinished": True})
    torch.save(model.state_dict(), args.work / "weights.pt")
    seconds = time.monotonic() - begun
    return {"steps": step, "tokens": step * args.rows * CONTEXT, "seconds": seconds, "unfinished": False}


@torch.no_grad()
def measure(model: Opt, tok: Tokenizer, texts: list[str]) -> dict[str, float]:
    """Loss in nats per token of passages, each behind </s>, in f32; and the same per byte of text."""
    device = next(model.parameters()).device
    nats, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([[BOS] + encode(tok, text)], device=device)
        nats += F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    size = sum(len(t.encode()) for t in texts)
    return {"loss": nats / tokens, "perplexity": math.exp(nats / tokens), "bits_per_byte": nats / math.log(2) / size,
            "tokens": tokens, "bytes": size}


@torch.no_grad()
def sample(model: Opt, tok: Tokenizer, prompt: str, count: int, temperature: float = 0.8, top_p: float = 0.95) -> str:
    device = next(model.parameters()).device
    ids = [BOS] + encode(tok, prompt)
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        logits = model(torch.tensor([ids], device=device))[0, -1].float().cpu() / temperature
        p, order = logits.softmax(-1).sort(descending=True)
        p[p.cumsum(-1) - p > top_p] = 0
        ids.append(int(order[torch.multinomial(p, 1, generator=generator)]))
        if ids[-1] == BOS:
            break
    return tok.decode(ids).strip()


# ---- the directory ----

def hf_tensors(model: Opt) -> dict[str, torch.Tensor]:
    out = {}
    for name, p in model.state_dict().items():
        p = p.detach().cpu().half().contiguous()
        if ".qkv." in name:
            for part, tensor in zip("qkv", p.chunk(3)):
                out["model.decoder." + name.replace("qkv", f"self_attn.{part}_proj")] = tensor.clone()
        else:
            out["model.decoder." + name.replace("out_proj", "self_attn.out_proj")] = p
    return out


CONFIG = {
    "architectures": ["OPTForCausalLM"], "model_type": "opt", "torch_dtype": "float16", "vocab_size": VOCAB,
    "hidden_size": HIDDEN, "word_embed_proj_dim": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "ffn_dim": FFN, "max_position_embeddings": CONTEXT, "activation_function": "relu", "do_layer_norm_before": True,
    "_remove_final_layer_norm": False, "enable_bias": True, "layer_norm_elementwise_affine": True, "dropout": 0.0,
    "attention_dropout": 0.0, "layerdrop": 0.0, "init_std": 0.02, "tie_word_embeddings": True, "use_cache": True,
    "bos_token_id": BOS, "eos_token_id": BOS, "pad_token_id": PAD, "prefix": "</s>",
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>",
    "unk_token": "<unk>", "add_prefix_space": False, "add_bos_token": True, "clean_up_tokenization_spaces": False,
    "model_max_length": CONTEXT,
}
GENERATION_CONFIG = {
    "do_sample": True, "temperature": 0.8, "top_p": 0.95, "bos_token_id": BOS, "eos_token_id": BOS, "pad_token_id": PAD,
}


def card(facts: dict, run: dict, scores: dict, samples: list[str]) -> str:
    rows = "\n".join(f"| {name} | {facts[name]['version']} | `{facts[name]['sha256']}` | {licence} | {weight} |"
                     for name, (weight, licence) in PACKAGES.items())
    figures = "\n".join(f"| {name} | {s['tokens']:,} | {s['loss']:.3f} | {s['perplexity']:.2f} | {s['bits_per_byte']:.3f} |"
                        for name, s in scores.items())
    written = "\n\n".join("> " + text.replace("\n", "\n>\n> ") for text in samples)
    state = "\n**Provisional: saved in the middle of a training run.**\n" if run["unfinished"] else ""
    return f"""# demo-opt: a very small English model
{state}
A {run['parameters'] / 1e6:.1f}M-parameter OPT, trained from nothing for sqd's demo and tests. It writes English sentences in the
manner of its sources, knows nothing, and is of no other use. A continuation that is found word for word in a source is
memory, not skill.

- Architecture: OPT, {LAYERS} layers, hidden {HIDDEN}, {HEADS} heads, MLP {FFN} with ReLU, norm before, learned positions, context {CONTEXT}, tied head; F16.
- Tokenizer: byte-level BPE, {VOCAB} entries, trained on the training split; every text starts with `</s>`.
- Training: {run['tokens'] / 1e6:.1f}M tokens in {run['steps']:,} steps of {run['rows'] * CONTEXT:,}, {run['seconds'] / 60:.0f} minutes on {run['device']}: windows of {CONTEXT // 4} in the
  first half, of {CONTEXT} in the second. Muon for the matrices (peak {10 * run['lr']:g}, weight decay 0.1), AdamW for the rest (peak {2 * run['lr']:g}); the
  rate falls straight to zero over the last 60 %; gradients clipped at 1, no dropout.

| split | tokens | loss (nats) | perplexity | bits per byte |
|---|---|---|---|---|
{figures}

Each passage was scored by itself behind `</s>`, in f32, with the F16 weights. Held-out is the whole of `heldout.txt`, train
is a sample of passages of about that size that the model was trained on.

## What it writes

At temperature 0.8, top_p 0.95, the first try with seed 1; nothing was picked.

{written}

## Files beside the model

- `calibration.txt`: 128 passages of at most 256 tokens from the training split; the first 64 are a fair smaller set.
- `heldout.txt`: the test split. In both files a blank line ends a passage, and a line is a paragraph.
- `NOTICES`: the licence texts of the documentation that the model is derived from.

## Where the text comes from

Derived from text in these packages of Debian 12, and nothing else:

| package | version | sha256 of the .deb | licence of the text | weight |
|---|---|---|---|---|
{rows}

Split: a chapter (the same chapter of both Bible translations together), page or dictionary entry is the unit; SHA-256 of
its name puts 2 % into test and 2 % into validation. Test paragraphs sharing 50 bytes with the training text were dropped.

## Making it again

    scripts/train-demo                 # an hour on one core; --help lists the options

The text, the split and the tokenizer come out the same from the same packages; the weights do not, since the schedule
follows the clock (`--steps {run['steps']}` fixes it) and sums of floats differ between machines.
"""


def write_model(out: Path, work: Path, model: Opt, tok: Tokenizer, facts: dict, run: dict,
                texts: dict[str, list[str]]) -> dict:
    """Writes the whole directory beside `out`, then renames file by file, so that readers never see half a file."""
    rounded = Opt().to(next(model.parameters()).device)
    rounded.load_state_dict({k: v.half().float() for k, v in model.state_dict().items()})
    scores = {"train": measure(rounded, tok, texts["train"]), "held-out": measure(rounded, tok, texts["heldout"])}
    samples = [sample(rounded, tok, prompt, 80) for prompt in PROMPTS]
    run |= {"parameters": sum(p.numel() for p in model.parameters())}
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, value in (("config", CONFIG), ("tokenizer_config", TOKENIZER_CONFIG), ("generation_config", GENERATION_CONFIG)):
        (fresh / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
    tok.save(str(fresh / "tokenizer.json"))
    save_file(hf_tensors(model), fresh / "model.safetensors", metadata={"format": "pt"})
    (fresh / "README.md").write_text(card(facts, run, scores, samples))
    (fresh / "NOTICES").write_text(notices(work))
    for name in ("calibration", "heldout"):
        (fresh / f"{name}.txt").write_text("\n\n".join(texts[name]) + "\n")
    (fresh / "model.safetensors").chmod(0o644)  # safetensors leaves it to the owner alone
    out.mkdir(exist_ok=True)
    for file in fresh.iterdir():
        os.replace(file, out / file.name)
    fresh.rmdir()
    return scores


def verify(out: Path, tok: Tokenizer, texts: list[str]) -> None:
    """The directory as transformers reads it against the model here: the same ids, and the same logits to rounding."""
    from transformers import AutoTokenizer, OPTForCausalLM
    theirs = OPTForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    their_tok = AutoTokenizer.from_pretrained(out)
    stored = load_file(out / "model.safetensors")
    ours, state = Opt(), {}
    for name in ours.state_dict():
        if ".qkv." in name:
            parts = [stored["model.decoder." + name.replace("qkv", f"self_attn.{p}_proj")] for p in "qkv"]
            state[name] = torch.cat(parts).float()
        else:
            state[name] = stored["model.decoder." + name.replace("out_proj", "self_attn.out_proj")].float()
    ours.load_state_dict(state)
    worst = 0.0
    with torch.no_grad():
        for text in texts:
            ids = their_tok(text)["input_ids"]
            assert ids == [BOS] + encode(tok, text), f"transformers tokenises {text[:40]!r} differently"
            x = torch.tensor([ids])
            worst = max(worst, (theirs(x).logits - ours(x)).abs().max().item())
    assert worst < 1e-3, f"transformers' logits differ by {worst}"
    print(f"transformers agrees: {len(texts)} passages, logits within {worst:.1e}")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--minutes", type=float, default=55, help="time for the training itself (default 55)")
    ap.add_argument("--steps", type=int, help="train for so many steps instead (default on a GPU: 6000)")
    ap.add_argument("--rows", type=int, default=8, help=f"sequences of {CONTEXT} tokens per step (default 8)")
    ap.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (default 0.002)")
    ap.add_argument("--init", type=Path, help="start from these weights (WORK/weights.pt of an earlier run)")
    ap.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    ap.add_argument("--compile", action="store_true", help="use torch.compile (needs a C++ compiler)")
    ap.add_argument("--first-save", type=float, default=3, help="write a provisional model after so many minutes")
    ap.add_argument("--out", type=Path, default=Path(__file__).parent / "demo-opt", help="directory to write")
    ap.add_argument("--work", type=Path, required=True, help="directory for packages and text")
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not args.steps:
        args.steps = 6000  # four passes over the text; by the clock a GPU would make hundreds, and learn it by heart

    facts = fetch(args.work)
    training, validation, test = split(read_all(args.work))
    for name, docs in (("train", training), ("validation", validation), ("test", test)):
        print(f"{name}: {len(docs)} units, {sum(len(p.encode()) for d in docs for p in d.paragraphs) / 1e6:.2f} MB")
    tok = train_tokenizer(training)
    few = sorted(training, key=unit_hash)[::50]
    texts = {"calibration": calibration(tok, training), "heldout": passages(tok, test, 480),
             "train": passages(tok, few, 480), "validation": passages(tok, validation, 480)}

    model = Opt().to(device)
    if args.init:
        model.load_state_dict(torch.load(args.init, map_location=device))
    fixed = {"rows": args.rows, "lr": args.lr, "device": torch.cuda.get_device_name() if device == "cuda" else "one CPU core"
             if args.threads == 1 else f"{args.threads} CPU cores"}
    run = train(model, Sampler(tok, training, args.seed), args,
                lambda run: write_model(args.out, args.work, model, tok, facts, run | fixed, texts))
    scores = write_model(args.out, args.work, model, tok, facts, run | fixed, texts)
    scores["validation"] = measure(model, tok, texts["validation"])
    print(json.dumps(run | fixed | {"scores": scores}, indent=2))
    verify(args.out, tok, texts["heldout"][:16])


if __name__ == "__main__":
    main()
