"""A GPU that breaks while it serves: every running request ends with one clear error, health turns within a second, and the process ends with its own
exit code and the device's words in the log."""
import threading
import time

from sqd_process import Sqd

EXIT_DEVICE = 70


def start(binary, model, nth):
    return Sqd(binary, "--model", model, "--listen", "127.0.0.1:0", env={"SG_FAULT_OP": str(nth)}, ready=False, expect_exit=EXIT_DEVICE)


def serving(s):
    """Did it come up before the nth operation?"""
    while s.process.poll() is None and not s.find("serve: ready"):
        time.sleep(0.02)
    if not s.find("serve: ready"):
        return False
    s.read_address()
    return True


def test_a_fault_in_a_step(sqd_binary, int8_model):
    nth = 400
    while True:
        with start(sqd_binary, int8_model, nth) as s:
            if serving(s):
                check(s)
                return
        assert "cudaErrorLaunchFailure" in s.log, s.log  # at the start: refused with the device's words
        nth += 400  # small steps: what comes behind the start is run to the fault
        assert nth < 100_000


def check(s):
    answers, health = [], []

    def ask(i):
        """Until it breaks: how many operations a step takes is not the test's business."""
        answer = (200,)
        while answer[0] == 200:
            answer = s.request("POST", "/v1/completions", {"prompt": f"Number {i} of", "max_tokens": 16, "ignore_eos": True})
        answers.append(answer)

    def watch():
        while s.process.poll() is None:
            try:
                health.append((time.monotonic(), s.get("/health")[0]))
            except OSError:
                return
            time.sleep(0.05)

    threads = [threading.Thread(target=watch, daemon=True)] + [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads[1:]:
        t.join()
    ended = time.monotonic()
    assert len(answers) == 8
    for status, _, body in answers:
        assert status in (500, 503) and b'"error"' in body, (status, body)
    assert s.process.wait(20) == EXIT_DEVICE
    threads[0].join()
    assert s.find(r"the device failed: .*: .*cudaErrorLaunchFailure"), s.log
    sick = [at for at, status in health if status == 503]
    assert sick and sick[0] - ended < 1.0
