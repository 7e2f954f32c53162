"""The GPU backend gives the tokens of the CPU backend: on 200 prompts, alone and in company, however prompts are cut into chunks, in whatever
order warps, blocks and streams run, and whatever cuBLASLt's rounding is."""
import asyncio
import json

import pytest

from conftest import DEMO
from client import complete_raw, events
from sqd_process import Sqd

PROMPTS, TOKENS = 200, 12


def prompts(n):
    """Passages of the held-out text, from a word to some hundred tokens."""
    text = (DEMO / "heldout.txt").read_text()
    starts = [len(text) * i // n for i in range(n)]
    return [text[text.index(" ", at) + 1:][: 4 + (i * 37) % 420].rsplit(" ", 1)[0] for i, at in enumerate(starts)]


async def complete(port, prompt, slots, stream=False):
    body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": stream}
    async with slots:
        rest = await complete_raw(port, body)
    if not stream:
        return json.loads(rest)["choices"][0]["text"]
    items = events(rest)
    assert items[-1] == "[DONE]"
    return "".join(c["text"] for item in items[:-1] for c in item["choices"])


async def complete_all(port, texts, at_once=64, stream=False):
    slots = asyncio.Semaphore(at_once)
    return await asyncio.gather(*(complete(port, text, slots, stream) for text in texts))


def completions(binary, model, texts, *args, at_once=64, stream=False):
    with Sqd(binary, "--model", model, "--listen", "127.0.0.1:0", "--max-queue", 1000, *args) as s:
        return asyncio.run(complete_all(s.port, texts, at_once, stream))


@pytest.fixture(scope="module")
def wanted(sqd_binary, int8_model):
    return completions(sqd_binary, int8_model, prompts(PROMPTS), "--backend", "cpu")


def test_200_prompts_give_the_cpus_tokens(sqd_binary, int8_model, wanted):
    got = completions(sqd_binary, int8_model, prompts(PROMPTS), "--backend", "cuda")
    different = [i for i in range(PROMPTS) if got[i] != wanted[i]]
    print(f"{PROMPTS - len(different)} of {PROMPTS} prompts give the CPU's tokens")
    assert not different, [(i, wanted[i], got[i]) for i in different[:3]]


def test_64_streams(sqd_binary, int8_model, wanted):
    assert completions(sqd_binary, int8_model, prompts(PROMPTS)[:64], "--backend", "cuda", stream=True) == wanted[:64]


@pytest.mark.parametrize("args,at_once", [(("--max-step-tokens", 7, "--max-sequences", 3), 3), (("--max-step-tokens", 512), 20), (("--max-sequences", 1), 4)],
                         ids=["chunks of 7", "whole prompts", "alone"])
def test_batches_and_chunks_change_nothing(sqd_binary, int8_model, wanted, args, at_once):
    n = 12
    assert completions(sqd_binary, int8_model, prompts(PROMPTS)[:n], "--backend", "cuda", *args, at_once=at_once) == wanted[:n]


MODES = {"order 1": {"SG_SCHED": "1"}, "order 2": {"SG_SCHED": "2", "SG_DEVICE": "a100"}, "eager": {"SG_ASYNC": "eager"},
         "random streams": {"SG_ASYNC": "random:5"}, "rounds to zero": {"SG_LT_ROUND": "rz"}, "rounds ties away": {"SG_LT_ROUND": "rna"},
         "poisoned": {"SG_POISON": "0xFF"}, "L4": {"SG_DEVICE": "l4"}, "RTX 5090": {"SG_DEVICE": "rtx5090"},
         "all checks": {"SG_CHECK_UNINIT": "1", "SG_CHECK_RACE": "1", "SG_CHECK_HOST_ACCESS": "1", "SG_CHECK_LEAKS": "1"}}


@pytest.mark.parametrize("mode", MODES)
def test_modes_change_nothing(sqd_binary, int8_model, wanted, mode):
    n = 6
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0", "--backend", "cuda", env=MODES[mode]) as s:
        assert asyncio.run(complete_all(s.port, prompts(PROMPTS)[:n])) == wanted[:n]
    complaints = [line for line in s.lines if line.startswith("softgpu:")]
    assert not complaints, complaints
