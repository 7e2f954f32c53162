"""Connections, clients that leave or do not read, deadlines, full queues, and the books over all of it."""
import os
import signal
import socket
import struct
import time

import pytest

from client import Raw, at_rest, balance, events, exchange, get, post, stream_text, until
from sqd_process import Sqd

COMPLETIONS = "/v1/completions"
SLOW = bool(os.environ.get("SQD_SLOW")) or os.environ.get("SQD_BUILD") in ("asan", "tsan")
TOKENS = 120 if SLOW else 450
LONG = {"prompt": "One", "n": 8, "max_tokens": TOKENS, "ignore_eos": True, "seed": 1}  # one sequence at a time: a second or so
CANCELLED = 'sqd_requests_total{outcome="cancelled"}'


@pytest.fixture(scope="module")
def narrow(sqd_binary, int8_model):
    """One sequence at a time, small steps: everything else has to wait."""
    with Sqd(sqd_binary, "--model", int8_model, "--served-name", "demo", "--listen", "127.0.0.1:0", "--max-sequences", 1, "--max-queue", 64,
             "--max-step-tokens", 16) as s:
        yield s


@pytest.fixture(scope="module")
def fake(harness, demo_model):
    with Sqd(harness, "--model", demo_model, "--served-name", "demo", "--listen", "127.0.0.1:0") as s:
        yield s


def outcome(server, name):
    return server.metrics()[f'sqd_requests_total{{outcome="{name}"}}']


def leave(c, how):
    if how == "reset":
        c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half":
        c.socket.shutdown(socket.SHUT_WR)
    else:
        c.socket.close()


# --- clients that leave ---

@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("stream", [True, False])
def test_gone_while_running(narrow, stream, how):
    before = at_rest(narrow)[CANCELLED]
    with Raw(narrow.port) as c:
        c.send(post(COMPLETIONS, {**LONG, "stream": stream}))
        if stream:
            assert c.head()[0] == 200
            c.until(b"data: ")
        else:
            until(lambda: narrow.metrics()["sqd_requests_running"] == 1)
        leave(c, how)
        until(lambda: outcome(narrow, "cancelled") == before + 1, 2, "cancellation")
        tokens = at_rest(narrow, 5)["sqd_generated_tokens_total"]
    time.sleep(0.1)
    assert narrow.metrics()["sqd_generated_tokens_total"] == tokens, "nothing is generated for nobody"


@pytest.mark.parametrize("stream", [True, False])
def test_gone_while_queued(narrow, stream):
    before = at_rest(narrow)
    with Raw(narrow.port) as first, Raw(narrow.port) as second:
        first.send(post(COMPLETIONS, {**LONG, "n": 4}))
        until(lambda: narrow.metrics()["sqd_requests_running"] == 1)
        second.send(post(COMPLETIONS, {**LONG, "n": 1, "stream": stream}))
        until(lambda: narrow.metrics()["sqd_requests_waiting"] >= 1)
        until(lambda: narrow.metrics()["sqd_requests_accepted_total"] == before["sqd_requests_accepted_total"] + 2)
        leave(second, "close")
        until(lambda: outcome(narrow, "cancelled") == before[CANCELLED] + 1, 2, "cancellation")
        answer = first.answer()
        assert answer.status == 200 and answer.json()["usage"]["completion_tokens"] == 4 * TOKENS, "the other client is not touched"
    at_rest(narrow)


def test_gone_in_prefill(narrow):
    before = at_rest(narrow)[CANCELLED]
    for n in range(5):  # one after the other: the queue holds no more than four of them
        with Raw(narrow.port) as c:
            c.send(post(COMPLETIONS, {"prompt": [[5 + i] * 500 for i in range(16)], "max_tokens": 2, "stream": True}))
            assert c.head()[0] == 200
        until(lambda want=before + n + 1: outcome(narrow, "cancelled") == want, 5, "cancellation")
    at_rest(narrow)


def test_gone_before_the_request_is_complete(narrow):
    before = at_rest(narrow)
    data = post(COMPLETIONS, LONG)
    for n in (1, 10, 60, len(data) - 1):
        with Raw(narrow.port) as c:
            c.send(data[:n])
    after = at_rest(narrow)
    assert after["sqd_requests_accepted_total"] == before["sqd_requests_accepted_total"]


def test_gone_while_tokenising(narrow):
    at_rest(narrow)
    for _ in range(10):
        with Raw(narrow.port) as c:
            c.send(post("/v1/tokenize", {"content": "some words " * 200000}))
    assert narrow.complete("One", max_tokens=2) is not None
    at_rest(narrow)


def test_stop_string_ends_the_job(narrow):
    """After a stop string the engine does not go on for nobody."""
    fields = {"prompt": "One", "temperature": 0, "ignore_eos": True}
    text = narrow.complete(max_tokens=20, **fields)
    before = at_rest(narrow)["sqd_generated_tokens_total"]
    for stream in (False, True):
        answer, _ = exchange(narrow.port, post(COMPLETIONS, {**fields, "max_tokens": 480, "stop": text[10:16], "stream": stream}))
        assert answer.status == 200
    assert at_rest(narrow)["sqd_generated_tokens_total"] - before < 480


def test_half_close_keep(sqd_binary, int8_model):
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0", "--half-close-keep=yes") as s:
        for stream in (True, False):
            with Raw(s.port) as c:
                c.send(post(COMPLETIONS, {"prompt": "One", "max_tokens": 30, "ignore_eos": True, "stream": stream}))
                c.socket.shutdown(socket.SHUT_WR)
                answer = c.answer()
                assert answer.status == 200 and (not stream or events(answer.body)[-1] == "[DONE]")
        at_rest(s)


# --- slow readers ---

def test_slow_reader_is_parked_then_served(sqd_binary, int8_model):
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0") as s:
        with Raw(s.port, receive_bytes=4096) as slow:
            slow.send(post(COMPLETIONS, {**LONG, "n": 16, "stream": True}))

            def parked():
                a = s.metrics()
                time.sleep(0.3)
                b = s.metrics()
                return b["sqd_requests_running"] > 0 and 0 < a["sqd_generated_tokens_total"] == b["sqd_generated_tokens_total"]
            until(parked, 30, "parked sequence")
            t = time.monotonic()
            assert s.complete("Two", max_tokens=8, ignore_eos=True)
            assert time.monotonic() - t < 10, "others are served meanwhile"
            items = events(slow.answer().body)
        whole = s.post(COMPLETIONS, {**LONG, "n": 16})[1]
        assert [stream_text(items, i)[0] for i in range(16)] == [c["text"] for c in whole["choices"]], "nothing was dropped"
        assert items[-1] == "[DONE]"
        at_rest(s)


def test_reader_without_progress_is_dropped(sqd_binary, int8_model):
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0", "--reader-timeout=700ms", "--sse-ping=200ms") as s:
        slow = [Raw(s.port, receive_bytes=4096) for _ in range(3)]
        for c in slow:
            c.send(post(COMPLETIONS, {**LONG, "n": 16, "stream": True}))
        until(lambda: outcome(s, "cancelled") == 3, 40, "drop of the readers")
        at_rest(s)
        for c in slow:
            c.socket.close()


def test_unary_reader_without_progress_is_dropped(sqd_binary, int8_model):
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0", "--reader-timeout=500ms") as s:
        with Raw(s.port, receive_bytes=4096) as c:
            c.send(get("/metrics") * 400)
            time.sleep(3)
            with pytest.raises(EOFError):
                for _ in range(400):
                    c.answer()


# --- connections ---

def test_pipelining(server):
    one = post(COMPLETIONS, {"prompt": "One", "max_tokens": 3, "seed": 1})
    stream = post(COMPLETIONS, {"prompt": "One", "max_tokens": 3, "seed": 1, "stream": True})
    with Raw(server.port) as c:
        c.send(one + one + get("/v1/models") + stream + stream + one)
        texts = [c.answer().json()["choices"][0]["text"] for _ in range(2)]
        assert c.answer().json()["object"] == "list"
        texts += [stream_text(events(c.answer().body))[0] for _ in range(2)]
        texts.append(c.answer().json()["choices"][0]["text"])
        assert len(set(texts)) == 1


def test_keep_alive_after_errors(server):
    with Raw(server.port) as c:
        for data, status in [(post(COMPLETIONS, b"{"), 400), (post("/nope", b"x" * 5000), 404), (get(COMPLETIONS), 405),
                             (post(COMPLETIONS, {"prompt": "One", "temperature": 5}), 400), (post(COMPLETIONS, {"prompt": [5] * 600}), 400),
                             (post(COMPLETIONS, {"prompt": "One", "max_tokens": 1}), 200), (get("/health"), 200)]:
            c.send(data)
            assert c.answer().status == status


def test_second_head_is_checked_too(server):
    with Raw(server.port) as c:
        c.send(get("/health") + b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n")
        assert c.answer().status == 200
        assert c.answer().status == 400
        assert c.ended()


def test_one_byte_at_a_time(server):
    with Raw(server.port) as c:
        for byte in post(COMPLETIONS, {"prompt": "One", "max_tokens": 1}):
            c.send(bytes([byte]))
        assert c.answer().status == 200


def test_half_open_heads(sqd_binary, int8_model):
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0", "--head-timeout=1500ms") as s:
        idle = [Raw(s.port) for _ in range(200)]
        for i, c in enumerate(idle):
            c.send(post(COMPLETIONS, LONG)[:i % 90])
        t = time.monotonic()
        assert s.complete("One", max_tokens=2, ignore_eos=True)
        assert time.monotonic() - t < 5
        for c in idle:
            assert c.ended(20)
            c.socket.close()
        assert s.metrics()["process_open_fds"] < 100


def test_connection_limit(sqd_binary, int8_model):
    """Beyond the limit connections wait, and are served at once when another one ends."""
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0", "--max-connections", 8) as s:
        full = [Raw(s.port) for _ in range(8)]
        for c in full:
            c.send(get("/health"))
            assert c.answer().status == 200
        with Raw(s.port) as ninth:
            ninth.send(get("/health"))
            with pytest.raises(TimeoutError):
                ninth.socket.settimeout(0.5)
                ninth.fill()
            full[3].socket.close()
            ninth.socket.settimeout(5)
            assert ninth.answer().status == 200
        for c in full:
            c.socket.close()


# --- deadlines ---

@pytest.fixture(scope="module")
def hasty(sqd_binary, int8_model):
    with Sqd(sqd_binary, "--model", int8_model, "--served-name", "demo", "--listen", "127.0.0.1:0", "--head-timeout=400ms",
             "--body-timeout=600ms", "--idle-timeout=800ms", "--sse-ping=100ms", "--max-sequences", 1) as s:
        yield s


def drip(c, data, step=0.05):
    """Sends byte by byte until the server ends the connection; the seconds that took."""
    t = time.monotonic()
    c.socket.settimeout(step)
    for byte in data:
        try:
            c.send(bytes([byte]))
            if not c.fill():
                break
        except TimeoutError:
            pass
        except OSError:
            break
    return time.monotonic() - t


def test_head_deadline(hasty):
    for start in (b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nHost: x\r\nX: "):
        with Raw(hasty.port) as c:
            c.send(start)
            t = time.monotonic()
            assert c.ended(10)
            assert time.monotonic() - t >= 0.3
    with Raw(hasty.port) as c:
        c.send(b"GET /health HTTP/1.1\r\nHost: x\r\nX: ")
        assert 0.3 <= drip(c, b"a" * 200) < 5


def test_body_deadline(hasty):
    for dripping in (False, True):
        with Raw(hasty.port) as c:
            c.send(post(COMPLETIONS, b" " * 300, b"X-Request-Id: slow\r\n")[:-290])
            if dripping:
                assert 0.4 <= drip(c, b" " * 200) < 5
                c.socket.settimeout(10)
            answer = c.answer()
            assert answer.status == 408 and answer.error()["code"] == "request_timeout"
            assert answer.headers["x-request-id"] == "slow"
            assert c.ended()


def test_idle_deadline(hasty):
    with Raw(hasty.port) as c:
        c.send(get("/health"))
        assert c.answer().status == 200
        t = time.monotonic()
        assert c.ended(10)
        assert time.monotonic() - t >= 0.6


def test_pings_and_no_deadline_while_waiting(hasty):
    with Raw(hasty.port) as first, Raw(hasty.port) as second, Raw(hasty.port) as third:
        first.send(post(COMPLETIONS, {**LONG, "n": 6}))
        until(lambda: hasty.metrics()["sqd_requests_running"] == 1)
        second.send(post(COMPLETIONS, {"prompt": "One", "max_tokens": 3, "stream": True, "ignore_eos": True}))
        third.send(post(COMPLETIONS, {"prompt": "One", "max_tokens": 3, "ignore_eos": True}))
        answer = second.answer()
        assert events(answer.body)[-1] == "[DONE]"
        if not answer.body.startswith(b"data: "):
            assert answer.body.startswith(b": ping\n\n")
        assert third.answer().status == 200
        assert first.answer().status == 200
    at_rest(hasty)


# --- overload, loading, draining, failing ---

def test_queue_full(sqd_binary, int8_model):
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0", "--max-sequences", 1, "--max-queue", 4) as s:
        s.complete("One", max_tokens=TOKENS, ignore_eos=True)  # something to measure a rate from
        with Raw(s.port) as first:
            first.send(post(COMPLETIONS, {**LONG, "n": 4}))
            until(lambda: s.metrics()["sqd_requests_running"] == 1)
            refused = None
            for _ in range(6):
                answer, closed = exchange(s.port, post(COMPLETIONS, {**LONG, "n": 2}), 60)
                if answer.status != 200:
                    refused = answer
                    break
            assert refused and refused.status == 429 and not closed
            error = refused.error()
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
            seconds, ms = int(refused.headers["retry-after"]), int(refused.headers["retry-after-ms"])
            assert 1 <= seconds <= 120 and 1000 <= ms <= 120000 and seconds == -(-ms // 1000)
            assert first.answer().status == 200
        m = at_rest(s)
        assert m['sqd_requests_rejected_total{reason="queue_full"}'] >= 1 and balance(m) == 0
        assert s.complete("One", max_tokens=2) is not None


def test_loading(harness, demo_model):
    with Sqd(harness, "--model", demo_model, "--listen", "127.0.0.1:0", "--load-ms", 1500, ready=False) as s:
        s.wait_for("listening on")
        s.read_address()
        answer, closed = exchange(s.port, post(COMPLETIONS, {"prompt": "One"}))
        assert answer.status == 503 and answer.error()["code"] == "model_loading" and not closed
        assert int(answer.headers["retry-after"]) >= 1
        assert exchange(s.port, post(COMPLETIONS, {"prompt": 5}))[0].status == 400
        assert exchange(s.port, post("/v1/tokenize", {"content": "a"}))[0].status == 503
        assert exchange(s.port, get("/livez"))[0].status == 200
        for path in ("/readyz", "/health"):
            answer, _ = exchange(s.port, get(path))
            assert answer.status == 503 and answer.json()["state"] == "loading"
        assert exchange(s.port, get("/v1/models"))[0].json()["data"]
        m = s.metrics()
        assert m['sqd_requests_rejected_total{reason="loading"}'] == 1 and balance(m) == 0
        s.wait_for("serve: ready")
        assert s.complete("One", max_tokens=2) is not None


def test_draining(sqd_binary, int8_model):
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0", "--max-sequences", 1) as s:
        with Raw(s.port) as running, Raw(s.port) as kept:
            kept.send(get("/health"))
            assert kept.answer().status == 200
            running.send(post(COMPLETIONS, {**LONG, "n": 4, "stream": True}))
            assert running.head()[0] == 200
            s.process.send_signal(signal.SIGTERM)
            until(lambda: health(s.port) in (None, "draining"), 5, "draining")
            kept.send(post(COMPLETIONS, {"prompt": "One"}))
            answer = kept.answer()
            assert answer.status == 503 and answer.error()["code"] == "draining" and answer.headers["connection"] == "close"
            assert 1 <= int(answer.headers["retry-after"]) <= 120
            items = events(b"".join(running.chunks()))
            assert items[-1] == "[DONE]", "what runs is finished"
        assert s.process.wait(30) == 0


def test_drain_deadline(sqd_binary, int8_model):
    """What does not end in time gets a clear end: an error event without [DONE], or a 503."""
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0", "--max-sequences", 1, "--drain-timeout=200ms") as s:
        with Raw(s.port) as stream, Raw(s.port) as unary, Raw(s.port) as waiting:
            stream.send(post(COMPLETIONS, {**LONG, "n": 16, "stream": True}))
            assert stream.head()[0] == 200
            unary.send(post(COMPLETIONS, {**LONG, "n": 16}))
            waiting.send(post(COMPLETIONS, LONG)[:-5])
            until(lambda: s.metrics()["sqd_requests_accepted_total"] == 2)
            s.process.send_signal(signal.SIGTERM)
            items = events(b"".join(stream.chunks()))
            assert items[-1]["error"]["code"] == "draining" and "[DONE]" not in items
            answer = unary.answer()
            assert answer.status == 503 and answer.error()["code"] == "draining"
            assert waiting.ended()
        s.process.wait(30)


def health(port):
    """The server's state, or None where nobody listens any more."""
    try:
        return exchange(port, get("/health"))[0].json()["state"]
    except OSError:
        return None


@pytest.mark.parametrize("last, status, code, outcomes", [(7, 503, "engine_unavailable", "failed"), (8, 409, "cancelled", "cancelled")])
def test_engine_ends_a_sequence(fake, last, status, code, outcomes):
    before = at_rest(fake)
    body = {"prompt": [[5, 6], [5, last]], "max_tokens": 100, "seed": 1}
    answer, closed = exchange(fake.port, post(COMPLETIONS, body))
    assert answer.status == status and answer.error()["code"] == code and not closed
    if status == 409:
        assert answer.headers["x-should-retry"] == "false"
    with Raw(fake.port) as c:
        c.send(post(COMPLETIONS, {**body, "stream": True}))
        items = events(c.answer().body)
        assert items[-1]["error"]["code"] == code and "[DONE]" not in items
        assert len([i for i in items if "choices" in i]) >= 3
        c.send(get("/health"))
        assert c.answer().status == 200
    after = at_rest(fake)
    name = f'sqd_requests_total{{outcome="{outcomes}"}}'
    assert after[name] == before[name] + 2


def test_end_of_sequence(fake):
    answer, _ = exchange(fake.port, post(COMPLETIONS, {"prompt": [5, 9], "max_tokens": 100}))
    reply = answer.json()
    assert reply["choices"][0]["finish_reason"] == "stop" and reply["usage"]["completion_tokens"] == 5


def test_books(server):
    """Every kind of end once more, then the sums; a request with many choices counts once."""
    before = at_rest(server)
    for fields in [{"max_tokens": 3, "n": 5}, {"max_tokens": 0}, {"max_tokens": 3, "stream": True}, {"max_tokens": -1}, {"temperature": 9}]:
        exchange(server.port, post(COMPLETIONS, {"prompt": "One", "ignore_eos": True, **fields}))
    after = at_rest(server)
    assert after["sqd_requests_accepted_total"] == before["sqd_requests_accepted_total"] + 3
    name = 'sqd_requests_total{outcome="length"}'
    assert after[name] == before[name] + 3
    http = 'sqd_http_requests_total{route="/v1/completions",code="400"}'
    assert after[http] == before.get(http, 0) + 2
