"""/v1/completions and its neighbours as clients use them: the real openai library, and what it cannot send."""
import asyncio
import json
import math
import re

import openai
import pytest

from client import Raw, events, exchange, get, post, stream_text
from sqd_process import Sqd

COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="EMPTY", max_retries=0) as c:
        yield c


def ask(server, **fields):
    answer, _ = exchange(server.port, post(COMPLETIONS, fields))
    assert answer.status == 200, answer.body
    return answer.json()


def ask_stream(server, **fields):
    with Raw(server.port) as c:
        c.send(post(COMPLETIONS, {**fields, "stream": True}))
        answer = c.answer()
    assert answer.status == 200, answer.body
    return events(answer.body)


# --- the openai library ---

def test_client_unary(client):
    reply = client.completions.create(model="demo", prompt="The river", max_tokens=8, temperature=0)
    assert re.fullmatch(r"cmpl-[0-9a-f]+", reply.id)
    assert (reply.object, reply.model) == ("text_completion", "demo")
    assert re.fullmatch(r"sqd-[0-9.]+-[0-9a-f]+", reply.system_fingerprint)
    assert reply.choices[0].index == 0 and reply.choices[0].logprobs is None
    assert reply.usage.completion_tokens <= 8
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens == 0


def test_client_stream(client):
    fields = dict(model="demo", prompt="The river", max_tokens=20, temperature=0)
    whole = client.completions.create(**fields)
    text, reasons, ids = "", [], set()
    for chunk in client.completions.create(**fields, stream=True):
        text += chunk.choices[0].text
        reasons.append(chunk.choices[0].finish_reason)
        ids.add(chunk.id)
    assert text == whole.choices[0].text and len(ids) == 1
    assert reasons[-1] == whole.choices[0].finish_reason and set(reasons[:-1]) <= {None}


def test_client_async(server):
    async def main():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="EMPTY", max_retries=0) as c:
            async def one(i):
                text = ""
                stream = await c.completions.create(model="demo", prompt=f"Item {i}", max_tokens=12, seed=i, stream=True)
                async for chunk in stream:
                    text += chunk.choices[0].text
                whole = await c.completions.create(model="demo", prompt=f"Item {i}", max_tokens=12, seed=i)
                assert text == whole.choices[0].text
            await asyncio.gather(*(one(i) for i in range(16)))
    asyncio.run(main())


def test_client_usage_chunk(client):
    chunks = list(client.completions.create(model="demo", prompt="A", max_tokens=4, stream=True,
                                            stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens <= 4
    assert all(c.usage is None for c in chunks[:-1])


def test_client_errors(client):
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(model="demo", prompt="A", temperature=3)
    assert (e.value.code, e.value.param, e.value.type) == ("invalid_value", "temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as e:
        client.completions.create(model="other", prompt="A")
    assert e.value.code == "model_not_found"


def test_client_models(client):
    models = client.models.list().data
    assert models[0].id == "demo" and models[0].object == "model" and models[0].owned_by == "sqd"
    assert models[0].max_model_len == 512
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_client_early_close(client, server):
    before = server.metrics()['sqd_requests_total{outcome="cancelled"}']
    stream = client.completions.create(model="demo", prompt="A", max_tokens=400, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    for _ in range(200):
        if server.metrics()['sqd_requests_total{outcome="cancelled"}'] == before + 1:
            return
    raise AssertionError("the left stream was not cancelled")


# --- prompts, choices, usage ---

def test_prompt_forms(server):
    def text(prompt):
        return [c["text"] for c in ask(server, prompt=prompt, max_tokens=6, temperature=0)["choices"]]
    answer, _ = exchange(server.port, post("/v1/tokenize", {"content": "The river", "add_special": True}))
    ids = answer.json()["tokens"]
    answer, _ = exchange(server.port, post("/v1/tokenize", {"prompt": "A tree", "add_special": True}))
    other = answer.json()["tokens"]
    one, two = text("The river"), text("A tree")
    assert text(["The river"]) == text(ids) == text([ids]) == text([float(i) for i in ids]) == one
    assert text(["The river", "A tree"]) == text([ids, other]) == one + two
    both = ask(server, prompt=["The river", "A tree"], max_tokens=6, ignore_eos=True)
    assert both["usage"]["prompt_tokens"] == len(ids) + len(other) and both["usage"]["completion_tokens"] == 12


def test_empty_prompt(server):
    reply = ask(server, prompt="", max_tokens=3, temperature=0, ignore_eos=True)
    assert reply["usage"]["prompt_tokens"] == 1
    assert ask(server, prompt=[""], max_tokens=3, temperature=0, ignore_eos=True)["choices"] == reply["choices"]


def test_n(server):
    fields = dict(prompt=["One", "Two"], n=3, max_tokens=5, seed=7, ignore_eos=True)
    reply = ask(server, **fields)
    assert [c["index"] for c in reply["choices"]] == list(range(6))
    texts = [c["text"] for c in reply["choices"]]
    assert len(set(texts)) > 3, "choices of one prompt differ"
    assert reply["usage"]["completion_tokens"] == 30
    single = ask(server, prompt="One", max_tokens=5, seed=7, ignore_eos=True)
    assert single["choices"][0]["text"] == texts[0], "the first choice is what n = 1 gives"
    assert single["usage"]["prompt_tokens"] * 2 == reply["usage"]["prompt_tokens"], "each prompt counts once"
    alone = ask(server, prompt="Two", n=3, max_tokens=5, seed=7, ignore_eos=True)
    assert [c["text"] for c in alone["choices"]] == texts[3:]
    items = ask_stream(server, **fields)
    assert [stream_text(items, i)[0] for i in range(6)] == texts
    assert items[-1] == "[DONE]"


def test_seed(server):
    def text(**more):
        return ask(server, prompt="One", max_tokens=12, ignore_eos=True, **more)["choices"][0]["text"]
    assert text(seed=-5) == text(seed=-5) == text(seed=-5.0)
    assert text(seed=5) != text(seed=6)
    assert len({text() for _ in range(3)}) > 1, "without a seed every answer is its own"
    assert text(seed=2**63 - 1) == text(seed=2**63 - 1)


@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_zero(server, stream):
    fields = dict(prompt=["One", "Two"], n=2, max_tokens=0)
    if stream:
        items = ask_stream(server, **fields, stream_options={"include_usage": True})
        assert [stream_text(items, i) for i in range(4)] == [("", "length")] * 4
        assert items[-1] == "[DONE]"
        usage = items[-2]["usage"]
    else:
        reply = ask(server, **fields)
        assert [(c["text"], c["finish_reason"]) for c in reply["choices"]] == [("", "length")] * 4
        usage = reply["usage"]
    assert usage["completion_tokens"] == 0 and usage["prompt_tokens"] > 0


def test_null_equals_absent(server):
    names = ["model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "stop", "presence_penalty", "frequency_penalty",
             "repetition_penalty", "logit_bias", "ignore_eos", "min_tokens", "stop_token_ids", "stream", "stream_options", "echo",
             "best_of", "user", "logprobs", "suffix", "response_format"]
    nulls = ask(server, prompt="One", seed=1, **{n: None for n in names})
    assert nulls["choices"] == ask(server, prompt="One", seed=1)["choices"]
    assert nulls["usage"]["completion_tokens"] <= 16, "max_tokens is 16 by default"


def test_what_clients_send(server):
    """The fields that real libraries add, at values that mean nothing."""
    before = server.metrics()["sqd_unknown_fields_total"]
    reply = ask(server, model="demo", prompt="One", max_tokens=2, temperature=0, top_p=0.9, stop="", logit_bias={}, user="u", n=1, best_of=1,
                echo=False, stop_token_ids=[], stream=False, stream_options={"include_usage": False}, response_format={"type": "text"},
                tools=[], tool_choice="none", metadata={}, store=False, top_k=-1)
    assert reply["choices"][0]["finish_reason"] in ("length", "stop")
    assert server.metrics()["sqd_unknown_fields_total"] == before + 4
    ask(server, prompt="One", max_tokens=1, stop=[], **{"stream_options": {"mystery": 1, "include_obfuscation": False}})


def test_edges(server):
    for fields in [dict(temperature=0), dict(temperature=2), dict(temperature=1e-320), dict(top_p=0), dict(top_p=1), dict(top_p=1.0),
                   dict(min_p=0), dict(min_p=1), dict(n=16), dict(presence_penalty=-2, frequency_penalty=2), dict(repetition_penalty=2),
                   dict(top_k=2**31 - 1), dict(max_tokens=3.0), dict(stop=["x" * 256] * 16), dict(prompt=["a"] * 128),
                   dict(logit_bias={str(i): 0 for i in range(1024)}), dict(logit_bias={"5": -100, "6": 100.0})]:
        reply = ask(server, **{"prompt": "One", "max_tokens": 1, **fields})
        assert reply["choices"][0]["finish_reason"] in ("length", "stop")


# --- text ---

def decoded(server, prompt, n):
    return ask(server, prompt=prompt, max_tokens=n, temperature=0, ignore_eos=True)["choices"][0]["text"]


def test_stream_equals_unary(server):
    for i in range(12):
        fields = dict(prompt=f"Story {i}", max_tokens=40, seed=i, temperature=1.3, ignore_eos=bool(i % 2))
        choice = ask(server, **fields)["choices"][0]
        assert stream_text(ask_stream(server, **fields)) == (choice["text"], choice["finish_reason"])


def test_stop(server):
    full = decoded(server, "The river", 60)
    assert len(full) > 60
    for stop in [full[20:26], full[9], full[30:33], full[:4], full[-5:]]:
        cut = full[:full.find(stop)]
        fields = dict(prompt="The river", max_tokens=60, temperature=0, ignore_eos=True)
        choice = ask(server, **fields, stop=stop)["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (cut, "stop"), stop
        assert stream_text(ask_stream(server, **fields, stop=[stop])) == (cut, "stop"), stop
    reply = ask(server, prompt="The river", max_tokens=60, temperature=0, ignore_eos=True, stop=full[20:26])
    assert reply["usage"]["completion_tokens"] < 60, "generation ended with the match"


def test_stop_first_completed_wins(server):
    full = decoded(server, "The river", 60)
    fields = dict(prompt="The river", max_tokens=60, temperature=0, ignore_eos=True)
    # All complete at the same character: the longest cuts; a later one never matters, in any order.
    stops = [full[30:33], full[25:33], full[28:33], full[40:48]]
    if full.find(stops[0]) == 30:
        for order in (stops, stops[::-1]):
            assert ask(server, **fields, stop=order)["choices"][0]["text"] == full[:25]


def test_stop_held_text_is_released(server):
    full = decoded(server, "The river", 30)
    fields = dict(prompt="The river", max_tokens=30, temperature=0, ignore_eos=True)
    never = full[-3:] + "\u2603"
    for stop in ([never], [full + "!"], [full[i:i + 5] + "\u2603" for i in range(0, 40, 5)]):
        assert ask(server, **fields, stop=stop)["choices"][0]["text"] == full
        assert stream_text(ask_stream(server, **fields, stop=stop)) == (full, "length")


def test_unicode(server):
    """Random ids make broken characters on purpose: what comes out is text, and the same both ways."""
    bias = {str(i): 50 for i in range(130, 259)}
    for seed in range(8):
        fields = dict(prompt="One", max_tokens=30, seed=seed, logit_bias=bias, ignore_eos=True)
        text = ask(server, **fields)["choices"][0]["text"]
        assert stream_text(ask_stream(server, **fields))[0] == text


def test_stream_format(server):
    with Raw(server.port) as c:
        c.send(post(COMPLETIONS, {"prompt": "One", "max_tokens": 3, "stream": True, "ignore_eos": True}, b"X-Request-Id: mine\r\n"))
        status, headers = c.head()
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream") and headers["cache-control"] == "no-cache"
        assert headers["x-accel-buffering"] == "no" and headers["x-request-id"] == "mine"
        body = b"".join(c.chunks())
    items = events(body)
    assert body.endswith(b"\n\ndata: [DONE]\n\n")
    for item in items[:-1]:
        assert set(item) == {"id", "object", "created", "model", "system_fingerprint", "choices"}
        assert item["object"] == "text_completion" and item["id"].startswith("cmpl-")
        assert set(item["choices"][0]) == {"index", "text", "logprobs", "finish_reason"}


# --- neighbours ---

def test_tokenize(server):
    for text in ["", "The river", " a  b\n", "na\u00efve \U0001f600 \u4e2d\u6587", "</s>", "x" * 100000]:
        answer, _ = exchange(server.port, post("/v1/tokenize", {"content": text}))
        reply = answer.json()
        assert answer.status == 200 and reply["count"] == len(reply["tokens"])
        answer, _ = exchange(server.port, post("/v1/detokenize", {"tokens": reply["tokens"]}))
        assert answer.json() == {"content": text}
    plain, _ = exchange(server.port, post("/v1/tokenize", {"content": "</s>"}))
    special, _ = exchange(server.port, post("/v1/tokenize", {"content": "</s>", "parse_special": True}))
    assert special.json()["count"] == 1 < plain.json()["count"]
    added, _ = exchange(server.port, post("/v1/tokenize", {"content": "</s>", "add_special": True}))
    assert added.json()["tokens"][1:] == plain.json()["tokens"]


def test_long_prompt_off_the_loop(server):
    """A body above 64 KiB is parsed and tokenised on a worker: too long for the context, but the same answer in shape and books."""
    answer, closed = exchange(server.port, post(COMPLETIONS, {"prompt": "word " * 60000, "max_tokens": 1}))
    error = answer.error()
    assert (answer.status, error["code"]) == (400, "context_length_exceeded") and not closed
    padded = {"prompt": "One", "max_tokens": 4, "seed": 5, "metadata": "x" * 100000}
    small = ask(server, prompt="One", max_tokens=4, seed=5)
    assert ask(server, **padded)["choices"] == small["choices"]


def test_health(server):
    for path in ("/health", "/livez", "/readyz"):
        answer, _ = exchange(server.port, get(path))
        reply = answer.json()
        assert answer.status == 200 and reply["state"] == "ready" and reply["model"] == "demo"
        assert {"since", "running", "waiting", "last_step_age_s"} <= set(reply)
        with Raw(server.port) as c:
            c.send(b"HEAD %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode() + get("/v1/models"))
            head = c.answer(body=False)
            assert head.status == 200 and int(head.headers["content-length"]) > 0
            assert c.answer().json()["object"] == "list", "HEAD has no body"
    answer, _ = exchange(server.port, get("/health?probe=1"))
    assert answer.status == 200


def test_metrics_format(server):
    answer, _ = exchange(server.port, get("/metrics"))
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    seen, types, family = set(), {}, None
    for line in answer.body.decode().splitlines():
        if line.startswith("# HELP "):
            family = line.split()[2]
            assert family not in types, "a family stands together"
        elif line.startswith("# TYPE "):
            assert line.split()[2] == family
            types[family] = line.split()[3]
        else:
            match = re.fullmatch(r'([a-z_]+)(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? (\S+)', line)
            assert match, line
            base = re.sub(r"_(bucket|sum|count)$", "", match[1]) if types[family] == "histogram" else match[1]
            assert base == family and line.rsplit(" ", 1)[0] not in seen
            assert math.isfinite(float(match[4]))
            seen.add(line.rsplit(" ", 1)[0])
            if types[family] == "counter":
                assert match[1].endswith("_total")
    for name in ("sqd_requests_accepted_total", 'sqd_requests_total{outcome="failed"}', "process_resident_memory_bytes",
                 'sqd_state{state="ready"}', 'sqd_http_requests_total{route="/v1/models/{id}",code="200"}'):
        assert name in seen, name
    assert any(s.startswith("sqd_model_info{") for s in seen) and any(s.startswith("sqd_build_info{") for s in seen)
    metrics = server.metrics()
    for family in (f for f, t in types.items() if t == "histogram"):
        buckets = [v for n, v in metrics.items() if n.startswith(family + "_bucket")]
        assert buckets == sorted(buckets) and buckets[-1] == metrics[family + "_count"]


def test_unix_socket(sqd_binary, int8_model, tmp_path):
    path = str(tmp_path / "sock")
    with Sqd(sqd_binary, "--model", int8_model, "--served-name", "demo", "--listen", "127.0.0.1:0", "--listen", f"unix:{path}") as s:
        with Raw(None, path=path) as c:
            c.send(post(COMPLETIONS, {"prompt": "One", "max_tokens": 5, "stream": True}))
            assert events(c.answer().body)[-1] == "[DONE]"
            c.send(get("/v1/models"))
            assert c.answer().status == 200, "the connection is kept"
        assert s.complete("One", max_tokens=2) is not None
