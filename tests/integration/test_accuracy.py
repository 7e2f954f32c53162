"""What quantisation costs on the demo model: O3 within 1 % of float; with planted outliers naive W8A8 loses at least half again, and O3
with alpha 0.5 stays within 2 %."""
import json
import subprocess
import sys

import pytest

from conftest import DEMO, ROOT

TEXT_BYTES = 60_000  # of the held-out text


def evaluate(binary, model, text, *args):
    done = subprocess.run([binary, "eval", "--model", model, "--text", text, "--json", *args], capture_output=True, text=True,
                          timeout=1800, check=True)
    result = json.loads(done.stdout)
    print(model.name, args, result["perplexity"])
    return result


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "heldout.txt"
    whole = (DEMO / "heldout.txt").read_text()
    path.write_text(whole[:whole.rindex("\n\n", 0, TEXT_BYTES) + 1])
    return path


@pytest.fixture(scope="module")
def float_result(sqd_binary, demo_model, text):
    return evaluate(sqd_binary, demo_model, text, "--scheme", "fp")


@pytest.fixture(scope="module")
def planted_model(demo_model, tmp_path_factory):
    """1 % of the channels at all four sites of every layer, 64 times larger; the same function."""
    out = tmp_path_factory.mktemp("planted") / "demo-outliers"
    subprocess.run([sys.executable, ROOT / "tests" / "lib" / "plant_outliers.py", demo_model, out, "--share", "0.01", "--factor", "64",
                    "--sites", "norm1,norm2,v,up"], check=True, timeout=600)
    return out


@pytest.mark.slow
def test_o3_is_within_one_percent(sqd_binary, int8_model, text, float_result):
    stored = evaluate(sqd_binary, int8_model, text)
    assert stored["tokens"] == float_result["tokens"]
    assert abs(stored["perplexity"] / float_result["perplexity"] - 1) < 0.01


@pytest.mark.slow
def test_against_prints_the_ratio(sqd_binary, demo_model, int8_model, text):
    result = evaluate(sqd_binary, int8_model, text, "--against", demo_model)
    assert result["ratio"] == pytest.approx(result["perplexity"] / result["against"]["perplexity"])


@pytest.mark.slow
def test_planting_changes_nothing_in_float(sqd_binary, planted_model, text, float_result):
    planted = evaluate(sqd_binary, planted_model, text, "--scheme", "fp")
    assert planted["perplexity"] == pytest.approx(float_result["perplexity"], rel=1e-6)


@pytest.mark.slow
def test_outliers_break_naive_quantisation_and_not_o3(sqd_binary, planted_model, text, float_result):
    naive = evaluate(sqd_binary, planted_model, text, "--scheme", "naive")
    assert naive["perplexity"] / float_result["perplexity"] >= 1.5
    for scheme in ("o3", "o1"):
        smooth = evaluate(sqd_binary, planted_model, text, "--scheme", scheme, "--alpha", "0.5")
        assert abs(smooth["perplexity"] / float_result["perplexity"] - 1) < 0.02, scheme
