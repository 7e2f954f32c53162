"""A client that speaks HTTP byte by byte, for what no well-behaved library sends."""
import asyncio
import json
import socket
import time


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    def error(self):
        """The error object, which must have OpenAI's shape."""
        error = self.json()["error"]
        assert {"message", "type", "param", "code"} <= set(error), error
        assert isinstance(error["message"], str) and error["message"]
        assert isinstance(error["type"], str) and isinstance(error["code"], str)
        assert error["param"] is None or isinstance(error["param"], str)
        return error


class Raw:
    """with Raw(port) as c: c.send(b"..."); c.answer()"""

    def __init__(self, port, timeout=120, receive_bytes=None, path=None):
        self.socket = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(timeout)
        self.socket.connect(path or ("127.0.0.1", port))
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def fill(self):
        """More bytes; False at the end of the connection."""
        try:
            more = self.socket.recv(65536)
        except ConnectionResetError:
            more = b""
        self.buffer += more
        return bool(more)

    def until(self, mark):
        while mark not in self.buffer:
            if not self.fill():
                raise EOFError(f"connection ended, {mark!r} not in {self.buffer[-200:]!r}")
        part, _, self.buffer = self.buffer.partition(mark)
        return part

    def exactly(self, n):
        while len(self.buffer) < n:
            if not self.fill():
                raise EOFError(f"connection ended after {len(self.buffer)} of {n} bytes")
        part, self.buffer = self.buffer[:n], self.buffer[n:]
        return part

    def head(self):
        """(status, headers) of the next answer; header names in lower case."""
        lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return int(lines[0].split()[1]), headers

    def chunks(self):
        while True:
            n = int(self.until(b"\r\n"), 16)
            data = self.exactly(n)
            self.until(b"\r\n")
            if not n:
                return
            yield data

    def answer(self, body=True):
        status, headers = self.head()
        if status == 100:
            status, headers = self.head()
        data = b""
        if body and headers.get("transfer-encoding") == "chunked":
            data = b"".join(self.chunks())
        elif body:
            data = self.exactly(int(headers.get("content-length", 0)))
        return Answer(status, headers, data)

    def ended(self, timeout=10):
        """The server closed the connection and sent nothing more."""
        self.socket.settimeout(timeout)
        return not self.buffer and not self.fill()


def post(path, body, extra=b"", version=b"1.1"):
    """The bytes of a POST with a JSON body."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return (b"POST %s HTTP/%s\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s"
            % (path.encode(), version, len(body), extra, body))


def get(path, extra=b""):
    return b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (path.encode(), extra)


def exchange(port, data, timeout=120):
    """Sends the bytes on a new connection; the answer, and whether the connection was closed after it."""
    with Raw(port, timeout) as c:
        c.send(data)
        answer = c.answer(body=not data.startswith(b"HEAD"))
        closed = False
        try:
            closed = c.ended(0.1)
        except TimeoutError:
            pass
        return answer, closed


def events(data):
    """The data objects of an event stream; the last is "[DONE]" where there was one. Comments are left out."""
    out = []
    for block in data.decode().split("\n\n"):
        if not block or block.startswith(":"):
            continue
        assert block.startswith("data: ") and "\n" not in block, block
        out.append("[DONE]" if block == "data: [DONE]" else json.loads(block[6:]))
    return out


async def complete_raw(port, body):
    """The bytes that answer a completion, unary or streamed, of a client that asks once and reads to the end. The status must be 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(post("/v1/completions", body, b"Connection: close\r\n", version=b"1.0"))
    head, _, rest = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b" 200 " in head.split(b"\r\n")[0], head + rest
    return rest


def stream_text(items, index=0):
    """(text, finish reason) of one choice, checked for the rules of a stream."""
    text, reason = "", None
    for item in items:
        if item == "[DONE]" or "error" in item:
            continue
        for choice in item["choices"]:
            if choice["index"] == index:
                assert reason is None, "a chunk after the finish reason"
                text += choice["text"]
                reason = choice["finish_reason"]
    return text, reason


def balance(metrics):
    """Accepted requests that have not ended in any way yet."""
    ended = sum(v for n, v in metrics.items() if n.startswith(("sqd_requests_total{", "sqd_requests_rejected_total{")))
    return metrics["sqd_requests_accepted_total"] - ended


def at_rest(server, timeout=30):
    """Waits until nothing runs; the metrics then, with every KV block back and balanced books."""
    end = time.monotonic() + timeout
    while True:
        m = server.metrics()
        busy = {n: m[n] for n in ("sqd_requests_running", "sqd_requests_waiting", "sqd_queue_tokens", 'sqd_kv_cache_blocks{state="used"}')}
        busy["balance"] = balance(m)
        if not any(busy.values()):
            return m
        assert time.monotonic() < end, f"not at rest after {timeout} s: {busy}"
        time.sleep(0.02)


def until(condition, timeout=20, what="condition"):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"no {what} within {timeout} s"
        time.sleep(0.01)
