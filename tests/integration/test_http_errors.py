"""Every refusal of the HTTP border, one by one: its status, its code, the field it names, and what becomes of the connection."""
import json

import pytest

from client import Raw, events, exchange, get, post
from sqd_process import Sqd

COMPLETIONS = "/v1/completions"
OK = {"prompt": "One", "max_tokens": 1}

# body, code, param
FIELDS = [
    ({}, "invalid_value", "prompt"),
    ({"prompt": None}, "invalid_value", "prompt"),
    ({"prompt": 5}, "invalid_value", "prompt"),
    ({"prompt": True}, "invalid_value", "prompt"),
    ({"prompt": {}}, "invalid_value", "prompt"),
    ({"prompt": []}, "invalid_value", "prompt"),
    ({"prompt": [[]]}, "invalid_value", "prompt[0]"),
    ({"prompt": ["a", 1]}, "invalid_value", "prompt[1]"),
    ({"prompt": [5, "a"]}, "invalid_value", "prompt[1]"),
    ({"prompt": [5, None]}, "invalid_value", "prompt[1]"),
    ({"prompt": [None]}, "invalid_value", "prompt"),
    ({"prompt": [5, -1]}, "invalid_value", "prompt[1]"),
    ({"prompt": [5, 10**9]}, "invalid_value", "prompt[1]"),
    ({"prompt": [5, 2.5]}, "invalid_value", "prompt[1]"),
    ({"prompt": [[5], [6, True]]}, "invalid_value", "prompt[1][1]"),
    ({"prompt": ["a"] * 129}, "invalid_value", "prompt"),
    ({"prompt": ["a"] * 65, "n": 2}, "invalid_value", "n"),
    ({**OK, "model": 5}, "invalid_value", "model"),
    ({**OK, "max_tokens": "5"}, "invalid_value", "max_tokens"),
    ({**OK, "max_tokens": True}, "invalid_value", "max_tokens"),
    ({**OK, "max_tokens": -1}, "invalid_value", "max_tokens"),
    ({**OK, "max_tokens": 1.5}, "invalid_value", "max_tokens"),
    ({**OK, "max_tokens": 2**40}, "invalid_value", "max_tokens"),
    ({**OK, "max_tokens": 1e300}, "invalid_value", "max_tokens"),
    ({**OK, "min_tokens": 2}, "invalid_value", "min_tokens"),
    ({**OK, "temperature": -0.1}, "invalid_value", "temperature"),
    ({**OK, "temperature": 2.1}, "invalid_value", "temperature"),
    ({**OK, "temperature": "1"}, "invalid_value", "temperature"),
    ({**OK, "temperature": [1]}, "invalid_value", "temperature"),
    ({**OK, "temperature": 1e308}, "invalid_value", "temperature"),
    ({**OK, "top_p": 1.01}, "invalid_value", "top_p"),
    ({**OK, "top_p": -1}, "invalid_value", "top_p"),
    ({**OK, "min_p": 2}, "invalid_value", "min_p"),
    ({**OK, "top_k": -2}, "invalid_value", "top_k"),
    ({**OK, "top_k": False}, "invalid_value", "top_k"),
    ({**OK, "n": 0}, "invalid_value", "n"),
    ({**OK, "n": 17}, "invalid_value", "n"),
    ({**OK, "n": "1"}, "invalid_value", "n"),
    ({**OK, "presence_penalty": 2.5}, "invalid_value", "presence_penalty"),
    ({**OK, "frequency_penalty": -2.5}, "invalid_value", "frequency_penalty"),
    ({**OK, "repetition_penalty": 0}, "invalid_value", "repetition_penalty"),
    ({**OK, "repetition_penalty": 2.5}, "invalid_value", "repetition_penalty"),
    ({**OK, "repetition_penalty": 1, "repeat_penalty": 1}, "invalid_value", "repeat_penalty"),
    ({**OK, "seed": 1.5}, "invalid_value", "seed"),
    ({**OK, "seed": "x"}, "invalid_value", "seed"),
    ({**OK, "stop": 5}, "invalid_value", "stop"),
    ({**OK, "stop": ["a"] * 17}, "invalid_value", "stop"),
    ({**OK, "stop": ["a", 5]}, "invalid_value", "stop[1]"),
    ({**OK, "stop": ["a", None]}, "invalid_value", "stop[1]"),
    ({**OK, "stop": "a" * 257}, "invalid_value", "stop"),
    ({**OK, "stop_token_ids": 5}, "invalid_value", "stop_token_ids"),
    ({**OK, "stop_token_ids": [10**9]}, "invalid_value", "stop_token_ids[0]"),
    ({**OK, "logit_bias": []}, "invalid_value", "logit_bias"),
    ({**OK, "logit_bias": {"x": 1}}, "invalid_value", "logit_bias.x"),
    ({**OK, "logit_bias": {"-1": 1}}, "invalid_value", "logit_bias.-1"),
    ({**OK, "logit_bias": {"05": 1}}, "invalid_value", "logit_bias.05"),
    ({**OK, "logit_bias": {"999999999": 1}}, "invalid_value", "logit_bias.999999999"),
    ({**OK, "logit_bias": {"5": 101}}, "invalid_value", "logit_bias.5"),
    ({**OK, "logit_bias": {"5": "1"}}, "invalid_value", "logit_bias.5"),
    ({**OK, "ignore_eos": 1}, "invalid_value", "ignore_eos"),
    ({**OK, "stream": 1}, "invalid_value", "stream"),
    ({**OK, "stream": "true"}, "invalid_value", "stream"),
    ({**OK, "stream_options": 5}, "invalid_value", "stream_options"),
    ({**OK, "stream": True, "stream_options": {"include_usage": 1}}, "invalid_value", "stream_options.include_usage"),
    ({**OK, "stream_options": {"include_usage": True}}, "invalid_value", "stream_options.include_usage"),
    ({**OK, "user": 5}, "invalid_value", "user"),
    ({**OK, "logprobs": 0}, "unsupported_parameter", "logprobs"),
    ({**OK, "logprobs": 5}, "unsupported_parameter", "logprobs"),
    ({**OK, "suffix": "x"}, "unsupported_parameter", "suffix"),
    ({**OK, "echo": True}, "unsupported_parameter", "echo"),
    ({**OK, "echo": "x"}, "invalid_value", "echo"),
    ({**OK, "best_of": 2}, "unsupported_parameter", "best_of"),
    ({**OK, "response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format.type"),
    ({**OK, "response_format": "text"}, "invalid_value", "response_format"),
]


@pytest.mark.parametrize("body, code, param", FIELDS, ids=lambda v: json.dumps(v)[:60] if not isinstance(v, str) else v)
def test_field(server, body, code, param):
    answer, closed = exchange(server.port, post(COMPLETIONS, body))
    assert answer.status == 400
    error = answer.error()
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error"), error
    assert not closed
    assert answer.headers["x-request-id"]


JSON = {
    "empty": (b"", "empty"),
    "not json": (b"hello", "not valid JSON"),
    "array": (b"[1]", "object"),
    "scalar": (b"5", "not valid JSON"),
    "trailing": (b'{"prompt":"a"} x', "not valid JSON"),
    "two": (b'{"prompt":"a"}{}', "not valid JSON"),
    "duplicate key": (b'{"prompt":"a","prompt":"b"}', "duplicate"),
    "nan": (b'{"prompt":"a","temperature":NaN}', "not valid JSON"),
    "big number": (b'{"prompt":"a","temperature":1e400}', "real number overflow"),
    "big integer": (b'{"prompt":"a","seed":9223372036854775808}', "too big integer"),
    "not utf-8": (b'{"prompt":"\xff"}', "not valid JSON"),
    "surrogate": (b'{"prompt":"\\ud800"}', "not valid JSON"),
    "nul": (b'{"prompt":"\\u0000"}', "not valid JSON"),
    "bom": (b'\xef\xbb\xbf{"prompt":"a"}', "not valid JSON"),
    "truncated": (b'{"prompt":"a', "not valid JSON"),
    "deep": (b'{"prompt":' + b"[" * 100000 + b"]" * 100000 + b"}", "nested deeper than 32"),
    "deep objects": (b'{"a":' * 100000 + b"1" + b"}" * 100000, "nested deeper than 32"),
    "many containers": (b'{"prompt":[' + b"[]," * 50000 + b"[]]}", "objects and arrays"),
    "many values": (b'{"prompt":[' + b"1," * 1200000 + b"1]}", "values"),
}


@pytest.mark.parametrize("name", JSON)
def test_json(server, name):
    body, words = JSON[name]
    answer, closed = exchange(server.port, post(COMPLETIONS, body))
    error = answer.error()
    assert (answer.status, error["code"], error["param"]) == (400, "invalid_json", None), error
    assert words in error["message"], error
    assert not closed


FRAMING = {
    "duplicate content-length": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
                                 b"Content-Length: 2\r\n\r\n{}", 400, "bad_request", "duplicate Content-Length"),
    "different content-length": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
                                 400, "bad_request", "duplicate Content-Length"),
    "chunked": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411, "length_required",
                "Transfer-Encoding"),
    "gzip coding": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 411, "length_required",
                    "Transfer-Encoding"),
    "both": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 411,
             "length_required", "Transfer-Encoding"),
    "no length": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n", 411, "length_required", "Content-Length"),
    "two hosts": (b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "bad_request", "exactly one Host"),
    "space before colon": (b"GET /health HTTP/1.1\r\nHost: x\r\nX-A : b\r\n\r\n", 400, "bad_request", "header field"),
    "coding behind a space": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding : chunked\r\n\r\n{}",
                              400, "bad_request", "header field"),
    "control byte": (b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: a\x01b\r\n\r\n", 400, "bad_request", "control byte"),
    "long content-length": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0000000000002\r\n\r\n{}", 400, "bad_request",
                            "Content-Length"),
    "get with body": (b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 400, "bad_request", "body"),
    "unknown word": (b"BREW /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n", 501, "not_implemented", "BREW"),
    "lower case": (b"post /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 501, "not_implemented", "post"),
    "expect": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: magic\r\nContent-Length: 2\r\n\r\n{}", 417, "expectation_failed",
               "100-continue"),
    "long target": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "uri_too_long", "target"),
    "many fields": (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 150 + b"\r\n", 431, "head_too_large", "header fields"),
    "large head": (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 40000 + b"\r\n\r\n", 431, "head_too_large", "head"),
    "large body": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n{",
                   413, "body_too_large", "99999999"),
}


@pytest.mark.parametrize("name", FRAMING)
def test_framing(server, name):
    data, status, code, words = FRAMING[name]
    answer, closed = exchange(server.port, data)
    error = answer.error()
    assert (answer.status, error["code"]) == (status, code), error
    assert words in error["message"], error
    assert closed and answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("data", [
    b"GET /health HTTP/1.1\r\n\r\n",  # no Host: the library's own answer
    b"GET /health HTTP/3.7\r\nHost: x\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"GET /" + b"a" * 200000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
])
def test_framing_of_the_library(server, data):
    with Raw(server.port) as c:
        c.send(data)
        while c.fill():
            pass
        assert c.buffer.startswith(b"HTTP/1.1 4") or c.buffer.startswith(b"HTTP/1.1 5"), c.buffer[:100]


@pytest.mark.parametrize("data, status, code", [
    (get("/nope"), 404, "not_found"),
    (get("/v1"), 404, "not_found"),
    (get("/v1/completions/"), 404, "not_found"),
    (get("//v1/models"), 404, "not_found"),
    (get("/%76%31/models"), 404, "not_found"),
    (get("/v1/models/nope"), 404, "model_not_found"),
    (get("/v1/models/%zz"), 404, "not_found"),
    (get("/v1/models/a%00b"), 404, "not_found"),
    (get("/v1/models/a/b"), 404, "not_found"),
    (post("/nope", b"{}"), 404, "not_found"),
    (get("/v1/completions"), 405, "method_not_allowed"),
    (post("/v1/models", b"{}"), 405, "method_not_allowed"),
    (b"DELETE /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method_not_allowed"),
    (b"OPTIONS /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method_not_allowed"),
    (b"PUT /health HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 405, "method_not_allowed"),
    (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 415, "unsupported_media_type"),
    (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415, "unsupported_media_type"),
    (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/jsonx\r\nContent-Length: 2\r\n\r\n{}", 415,
     "unsupported_media_type"),
    (post(COMPLETIONS, {**OK, "model": "nope"}), 404, "model_not_found"),
    (post("/v1/tokenize", {}), 400, "invalid_value"),
    (post("/v1/tokenize", {"content": 5}), 400, "invalid_value"),
    (post("/v1/tokenize", {"content": "a", "add_special": 1}), 400, "invalid_value"),
    (post("/v1/detokenize", {"tokens": "a"}), 400, "invalid_value"),
    (post("/v1/detokenize", {"tokens": [-1]}), 400, "invalid_value"),
    (post("/v1/detokenize", {}), 400, "invalid_value"),
])
def test_route(server, data, status, code):
    answer, closed = exchange(server.port, data)
    error = answer.error()
    assert (answer.status, error["code"]) == (status, code), error
    assert not closed, "an error whose body was read keeps the connection"
    if status == 405:
        assert answer.headers["allow"] in ("POST", "GET", "GET, HEAD")


def test_order_of_checks(server):
    """Framing, route, method, content type, length: the first that fails answers."""
    large = b"Content-Length: 99999999\r\n"
    for data, status in [
        (b"GET /nope HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"POST /nope HTTP/1.1\r\nHost: x\r\n" + large + b"\r\n", 404),
        (b"POST /health HTTP/1.1\r\nHost: x\r\n" + large + b"\r\n", 405),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + large + b"\r\n", 415),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + large + b"\r\n", 413),
    ]:
        answer, _ = exchange(server.port, data)
        assert answer.status == status, data
        answer.error()


def test_context_length(server):
    answer, closed = exchange(server.port, post(COMPLETIONS, {"prompt": [5] * 400, "max_tokens": 400}))
    error = answer.error()
    assert (answer.status, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
    assert (error["n_prompt_tokens"], error["max_tokens"], error["n_ctx"]) == (400, 400, 512)
    for count in ("400", "512", "800"):
        assert count in error["message"]
    assert not closed
    answer, _ = exchange(server.port, post(COMPLETIONS, {"prompt": [[5], [5] * 510], "max_tokens": 3}))
    assert answer.error()["param"] == "prompt[1]"
    answer, _ = exchange(server.port, post(COMPLETIONS, {"prompt": [5] * 510, "max_tokens": 2}))
    assert answer.status == 200


def test_expect_continue(server):
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    body = json.dumps(OK).encode()
    with Raw(server.port) as c:
        c.send(head % (b"/v1/completions", b"application/json", len(body)))
        assert c.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
        c.send(body)
        assert c.answer().status == 200
    for path, kind, n, status in [(b"/nope", b"application/json", 10, 404), (b"/v1/completions", b"text/plain", 10, 415),
                                  (b"/v1/completions", b"application/json", 10**8, 413)]:
        answer, closed = exchange(server.port, head % (path, kind, n))
        assert answer.status == status and closed, "refused without asking for the body"
        answer.error()


def test_request_id(server):
    for given in (b"abc-1.2_3", b"x" * 128):
        answer, _ = exchange(server.port, get("/v1/models", b"X-Request-Id: %s\r\n" % given))
        assert answer.headers["x-request-id"].encode() == given
    seen = set()
    for given in (b"", b"x" * 129, b"a b", b"a\xc3\xa9"):
        answer, _ = exchange(server.port, get("/nope", b"X-Request-Id: %s\r\n" % given))
        seen.add(answer.headers["x-request-id"])
    assert len(seen) == 4 and all(s.startswith("req-") for s in seen)


def test_http_1_0(server):
    answer, closed = exchange(server.port, b"GET /health HTTP/1.0\r\n\r\n")
    assert answer.status == 200 and closed
    with Raw(server.port) as c:
        c.send(post(COMPLETIONS, {**OK, "stream": True}, version=b"1.0"))
        status, headers = c.head()
        assert status == 200 and "transfer-encoding" not in headers
        while c.fill():
            pass
        assert events(c.buffer)[-1] == "[DONE]"


def test_settings(sqd_binary, int8_model):
    with Sqd(sqd_binary, "--model", int8_model, "--served-name", "demo", "--listen", "127.0.0.1:0", "--allow-chunked=yes",
             "--strict-fields=yes", "--max-body", "2000") as s:
        chunked = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        body = json.dumps(OK).encode()
        answer, closed = exchange(s.port, chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        assert answer.status == 200 and not closed
        answer, closed = exchange(s.port, chunked + b"bb8\r\n" + b" " * 3000 + b"\r\n0\r\n\r\n")
        assert answer.status == 413 and answer.error()["code"] == "body_too_large"
        answer, _ = exchange(s.port, chunked.replace(b"Host", b"Content-Length: 5\r\nHost") + b"0\r\n\r\n")
        assert answer.status == 400
        answer, _ = exchange(s.port, post(COMPLETIONS, {**OK, "mystery": 1}))
        assert answer.status == 400 and (answer.error()["code"], answer.error()["param"]) == ("unknown_parameter", "mystery")
        answer, _ = exchange(s.port, post(COMPLETIONS, b" " * 2001))
        assert answer.status == 413
