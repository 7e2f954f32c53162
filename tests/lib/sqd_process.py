"""Runs `sqd serve` for a test: starts it on a free port, waits until it is ready, collects its log, ends it, and insists on a clean end."""
import http.client
import json
import os
import re
import signal
import subprocess
import threading
import time


def on_backend(args, env=None):
    """(arguments, environment) of sqd for the backend that SQD_BACKEND names, unless the arguments name one; SQD_CUDA_LIBS: where its libraries lie."""
    args, env = list(args), {**os.environ, **(env or {})}
    if (backend := os.environ.get("SQD_BACKEND")) and "--backend" not in args:
        args += ["--backend", backend]
    if libs := os.environ.get("SQD_CUDA_LIBS"):
        env["LD_LIBRARY_PATH"] = libs
    return args, env


class Sqd:
    """with Sqd(binary, "--model", dir, "--listen", "127.0.0.1:0") as s: s.get("/health")"""

    def __init__(self, binary, *args, env=None, ready=True, pass_fds=(), preexec_fn=None, expect_exit=0, prefix=(), inherit=True):
        """prefix: a command to run it under. inherit=False: env is the whole environment, the arguments are all."""
        self.expect_exit = expect_exit
        self.lines = []
        args = [*map(str, args)]
        if inherit and os.path.basename(binary) == "sqd":
            args, env = on_backend(args, env)
        elif inherit:
            env = {**os.environ, **(env or {})}
        self.process = subprocess.Popen([*prefix, str(binary), "serve", *args], stderr=subprocess.PIPE, text=True, errors="replace",
                                        env=env, pass_fds=pass_fds, preexec_fn=preexec_fn)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if ready:
            try:
                self.wait_for(r"serve: ready", 300)
            except AssertionError:
                self.process.kill()  # nobody has it to end it
                raise
            self.read_address()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def find(self, pattern):
        for line in list(self.lines):
            if match := re.search(pattern, line):
                return match
        return None

    def wait_for(self, pattern, timeout_s=30):
        """The first log line that matches; fails with the whole log when the time or the process ends first."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if match := self.find(pattern):
                return match
            if self.process.poll() is not None:
                self._reader.join(5)
                if match := self.find(pattern):
                    return match
                break
            time.sleep(0.01)
        raise AssertionError(f"no log line matches {pattern!r} (exit status {self.process.poll()}):\n{self.log}")

    def read_address(self):
        """Takes host and port from the log, once they are there; of a server that need not be ready."""
        if match := self.find(r"listening on (127\.0\.0\.1):(\d+)"):
            self.host, self.port = match[1], int(match[2])

    def request(self, method, path, body=None, headers=None, timeout=120):
        """(status, headers, body bytes); a dict body is sent as JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            if isinstance(body, dict):
                body = json.dumps(body)
                headers = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, body, headers=None):
        status, _, data = self.request("POST", path, body, headers)
        return status, json.loads(data)

    def complete(self, prompt, **fields):
        """Text of a unary completion."""
        status, reply = self.post("/v1/completions", {"prompt": prompt, **fields})
        assert status == 200, reply
        return reply["choices"][0]["text"]

    def metrics(self) -> dict:
        """{'name{labels}': value} of every sample."""
        status, _, data = self.get("/metrics")
        assert status == 200
        samples = (line.rsplit(" ", 1) for line in data.decode().splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def stop(self, sig=signal.SIGTERM, timeout_s=60) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"sqd did not end within {timeout_s} s:\n{self.log}") from None
        self._reader.join(5)
        return status

    def ends_by_itself(self, timeout_s=60):
        """Waits for the end that an error in the log announced: a signal might meet the process on its way out."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.stop()
            raise AssertionError(f"sqd did not end by itself within {timeout_s} s:\n{self.log}") from None

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None and self.expect_exit:
            self.ends_by_itself()
        status = self.stop()
        if kind is None:
            assert status == self.expect_exit, f"exit status {status}:\n{self.log}"
