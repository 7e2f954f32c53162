"""The daemon around the model: command line, configuration, service manager, signals, and files that break a rule."""
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

from sqd_process import Sqd


def run(binary, *args, **kwargs):
    return subprocess.run([str(binary), *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs)


# --- command line and configuration ---

@pytest.mark.parametrize("command", ["serve", "quantize", "eval", "bench"])
def test_help(sqd_binary, command):
    done = run(sqd_binary, command, "--help")
    assert done.returncode == 0 and done.stdout.startswith(("Serves", "Makes", "Measures", "Turns", "Usage", "Quantises")), done.stdout
    assert "--" in done.stdout and not done.stderr


@pytest.mark.parametrize("args, status, words", [
    ([], 64, "Usage"),
    (["frobnicate"], 64, "unknown command 'frobnicate'"),
    (["serve", "--modle", "x"], 64, "unknown option --modle (nearest: --model)"),
    (["serve", "stray"], 64, "unexpected argument 'stray'"),
    (["serve"], 78, "no model"),
    (["serve", "--model", "/nowhere", "--config", "/nowhere/sqd.conf"], 66, "/nowhere/sqd.conf"),
    (["serve", "--model", "/nowhere", "--listen", "localhost"], 78, "expected HOST:PORT"),
    (["serve", "--model", "/nowhere", "--listen", "127.0.0.1:0"], 66, "/nowhere"),
    (["serve", "--model", "/nowhere", "--threads", "many"], 78, "threads: expected an integer, found 'many'"),
    (["quantize"], 64, "--model"),
    (["eval"], 64, "--model"),
    (["bench"], 64, "--roof"),
])
def test_usage(sqd_binary, args, status, words):
    done = run(sqd_binary, *args)
    assert done.returncode == status, done
    assert words in done.stderr


def test_config_file(sqd_binary, tmp_path):
    conf = tmp_path / "sqd.conf"
    conf.write_text("[model]\nmodel = /m\n[engine]\nmax_sequences = 4\n")
    assert run(sqd_binary, "serve", "--config", conf, "--check-config").returncode == 0
    printed = run(sqd_binary, "serve", "--config", conf, "--print-config", "--threads", "2").stdout
    assert re.search(r"# from: .*sqd\.conf:4\nmax_sequences = 4\n", printed)
    assert "# from: command line\nthreads = 2\n" in printed
    # what it prints is a valid file again
    again = tmp_path / "again.conf"
    again.write_text(printed)
    assert run(sqd_binary, "serve", "--config", again, "--check-config").returncode == 0
    conf.write_text("[engine]\nmax_sequence = 4\n")
    done = run(sqd_binary, "serve", "--config", conf, "--check-config")
    assert done.returncode == 78
    assert f"{conf}:2: unknown key 'max_sequence' (nearest: 'max_sequences')" in done.stderr


# --- the service manager ---

class Manager:
    """Plays systemd's side of the notification socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(0.1)
        self.env = {"NOTIFY_SOCKET": str(path)}
        self.messages = []
        self.running = True
        self.thread = threading.Thread(target=self._receive, daemon=True)
        self.thread.start()

    def _receive(self):
        while self.running:
            try:
                self.messages.append((time.monotonic(), self.socket.recv(4096).decode()))
            except TimeoutError:
                pass

    def texts(self):
        return [text for _, text in self.messages]

    def wait_for(self, part, timeout_s=20):
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if any(part in text for text in self.texts()):
                return
            time.sleep(0.01)
        raise AssertionError(f"no {part!r} in {self.texts()}")

    def close(self):
        self.running = False
        self.thread.join()
        self.socket.close()


@pytest.fixture
def manager(tmp_path):
    m = Manager(tmp_path / "notify")
    yield m
    m.close()


def test_notify_and_watchdog(sqd_binary, int8_model, manager):
    env = {**manager.env, "WATCHDOG_USEC": "400000"}
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0", env=env) as s:
        manager.wait_for("READY=1")
        time.sleep(1.5)
        pings = [t for t, text in manager.messages if "WATCHDOG=1" in text]
        assert len(pings) >= 4, manager.texts()
        assert s.stop() == 0
    manager.wait_for("STOPPING=1")
    texts = manager.texts()
    assert any("STATUS=" in text for text in texts)
    assert [i for i, t in enumerate(texts) if "STOPPING=1" in t][0] > [i for i, t in enumerate(texts) if "READY=1" in t][0]


def test_reload(sqd_binary, int8_model, manager, tmp_path):
    conf = tmp_path / "sqd.conf"
    conf.write_text(f"[model]\nmodel = {int8_model}\n[server]\nlisten = 127.0.0.1:0\n")
    with Sqd(sqd_binary, "--config", conf, env=manager.env) as s:
        conf.write_text(conf.read_text() + "[log]\nlog_level = debug\n")
        s.process.send_signal(signal.SIGHUP)
        s.wait_for("reloaded: log_level debug")
        manager.wait_for("RELOADING=1")
        reloading = next(text for text in manager.texts() if "RELOADING=1" in text)
        assert "MONOTONIC_USEC=" in reloading
        conf.write_text("[log]\nlog_level = loud\n")
        s.process.send_signal(signal.SIGHUP)
        s.wait_for("reload refused.*log_level: expected one of")
        assert s.get("/health")[0] == 200




def test_socket_activation(sqd_binary, int8_model, tmp_path):
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    # LISTEN_PID must be the child's own pid: a shell sets it after the fork
    command = f'export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http; exec "$0" serve --model "$1" 3<&{listener.fileno()}'
    process = subprocess.Popen(["/bin/bash", "-c", command, str(sqd_binary), str(int8_model)], pass_fds=[listener.fileno()],
                               stderr=subprocess.PIPE, text=True)
    try:
        # accepted at once; while the model loads the answer is 503
        statuses = set()
        end = time.monotonic() + 120
        while time.monotonic() < end and 200 not in statuses:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as c:
                c.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                statuses.add(int(c.makefile("rb").readline().split()[1]))
        assert 200 in statuses and statuses <= {200, 503}
        process.terminate()
        assert process.wait(60) == 0
        # the manager's socket outlives the process: clients wait in the backlog instead of being refused
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
    finally:
        process.kill()
        process.wait()
        listener.close()


def test_unit_files(sqd_binary, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    units = sqd_binary.parent.parent / "systemd"
    for name in ("sqd.service", "sqd.socket"):
        text = (units / name).read_text()
        (tmp_path / name).write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sqd_binary}", text, flags=re.M))
    # an unknown key only prints a warning and leaves the status 0, so any word about our files is a failure
    done = run("systemd-analyze", "verify", "--man=no", tmp_path / "sqd.service", tmp_path / "sqd.socket")
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "sqd." in line]
    assert done.returncode == 0 and not complaints, done
    done = run("systemd-analyze", "security", "--offline=true", "--threshold=20", tmp_path / "sqd.service")
    assert done.returncode == 0, done.stdout[-400:]


# --- signals ---

def stream_completion(s, out, **fields):
    _, _, data = s.request("POST", "/v1/completions", {"prompt": "And it came to pass", "stream": True, "ignore_eos": True, **fields})
    out.append(data.decode())


def terminate_at_work(s):
    end = time.monotonic() + 30
    while s.metrics()["sqd_requests_running"] < 1 and time.monotonic() < end:
        time.sleep(0.005)
    s.process.send_signal(signal.SIGTERM)


def test_sigterm_drains(sqd_binary, int8_model):
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0") as s:
        out = []
        client = threading.Thread(target=stream_completion, args=(s, out), kwargs={"max_tokens": 400})
        client.start()
        terminate_at_work(s)
        s.wait_for("draining")
        if s.process.poll() is None:
            try:
                status, reply = s.post("/v1/completions", {"prompt": "x"})
                assert (status, reply["error"]["code"]) == (503, "draining")
                assert s.get("/readyz")[0] == 503 and s.get("/livez")[0] == 200
            except (ConnectionError, OSError):
                pass  # it ended in between
        client.join()
        assert out and out[0].rstrip().endswith("data: [DONE]")
        assert '"finish_reason":"length"' in out[0].replace(" ", "")
        assert s.stop() == 0


def test_second_sigterm_ends_at_once(sqd_binary, int8_model):
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0") as s:
        out = []
        prompts = ["And it came to pass"] * 16
        client = threading.Thread(target=stream_completion, args=(s, out), kwargs={"max_tokens": 400, "prompt": prompts})
        client.start()
        terminate_at_work(s)
        s.wait_for("draining")
        s.process.send_signal(signal.SIGTERM)
        assert s.process.wait(20) == 0
        client.join()
        text = out[0]
        # cut off: an error event and no [DONE]; or it had finished just before
        assert ("[DONE]" in text) != ('"error"' in text)


def test_sigterm_while_loading(sqd_binary, int8_model):
    s = Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0", ready=False)
    s.wait_for("listening on")
    assert s.stop() == 0


# --- files that break a rule ---

@pytest.fixture
def broken(int8_model, tmp_path):
    """A copy of the INT8 model to break."""
    path = tmp_path / "broken"
    shutil.copytree(int8_model, path)
    return path


def expect_refusal(sqd_binary, model, status, *words):
    done = run(sqd_binary, "serve", "--model", model, "--listen", "127.0.0.1:0")
    assert done.returncode == status, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    return done.stderr


def test_truncated_weights(sqd_binary, broken):
    path = broken / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)
    expect_refusal(sqd_binary, broken, 65, "model.safetensors", "S10")


def header_of(path):
    data = path.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + n]), n, bytearray(data)


def test_zero_scale(sqd_binary, broken):
    path = broken / "model.safetensors"
    header, n, data = header_of(path)
    name = next(name for name in header if name.endswith("fc1.input_scale"))
    begin, end = header[name]["data_offsets"]
    data[8 + n + begin:8 + n + end] = bytes(end - begin)
    path.write_bytes(data)
    expect_refusal(sqd_binary, broken, 65, name, "Q")


def test_missing_tokenizer(sqd_binary, broken):
    (broken / "tokenizer.json").unlink()
    expect_refusal(sqd_binary, broken, 66, "tokenizer.json")


def test_unknown_architecture(sqd_binary, broken):
    config = json.loads((broken / "config.json").read_text())
    config["model_type"] = "mystery"
    (broken / "config.json").write_text(json.dumps(config))
    expect_refusal(sqd_binary, broken, 65, "config.json", "mystery", "opt")


def test_missing_tensor(sqd_binary, broken):
    path = broken / "model.safetensors"
    header, n, data = header_of(path)
    name = next(name for name in header if name.endswith("layers.0.fc1.weight_scale"))
    text = data[8:8 + n].replace(name.encode(), name.replace("fc1", "fcX").encode())
    data[8:8 + n] = text
    path.write_bytes(data)
    expect_refusal(sqd_binary, broken, 65, "layers.0.fc1.weight_scale", "layers.0.fcX.weight_scale")


def test_address_in_use(sqd_binary, int8_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        done = run(sqd_binary, "serve", "--model", int8_model, "--listen", address)
        assert done.returncode == 1 and address in done.stderr and "in use" in done.stderr
