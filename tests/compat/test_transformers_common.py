"""Transformers' common tests of models, configurations and image processors hold for our classes.

`EXPECTED` is the complete list of what does not hold, with the reasons; a test of the list that begins to hold is a
failure too, so that the list stays true. docs/migration/from_transformers_trainer.md has the same rows.
"""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from source_distribution import Unavailable, unpacked_tests

HERE = Path(__file__).parent
SUITES = ("DetectionModelTest", "SegmentationModelTest", "KeypointModelTest", "ImageProcessorTest")

NO_EMBEDDING_TABLE = "A detector has no table of input embeddings: get_input_embeddings() is None."
EMPTY_FILE = "A weight file without the model's tensors is refused; Transformers would start from random weights."
OWN_PROCESSOR = (
    "AutoImageProcessor loads Transformers' own RfDetrImageProcessor, which needs torchvision and writes more fields."
)
ONE_BACKEND = "The processor has one backend, which runs on torch alone."

# Test (name or pattern) -> why it fails. The names of the suites where it does are in front; all of them without.
EXPECTED = {
    "ModelTest::test_model_get_set_embeddings": NO_EMBEDDING_TABLE,
    "ModelTest::test_model_weights_reload_no_missing_tied_weights": EMPTY_FILE,
    "ImageProcessorTest::test_image_processor_save_load_with_autoimageprocessor": OWN_PROCESSOR,
    "ImageProcessorTest::test_new_models_require_torchvision_backend": ONE_BACKEND,
}

# Half precision may give two nearly equal proposals the other order, and the queries behind them with it: pattern of a
# test -> the message that it fails with if so.
UNSTEADY = {
    r"ModelTest::test_eager_matches_sdpa_inference_\d+_(bf16|fp16)_\w+": r"relative difference for hidden_states"
}

# What a skipped test says -> why it does not concern these models. Any other reason to skip is a failure.
SKIPS = {
    r"test requires (an |multiple )?(accelerator|Flash|MPS|CUDA|GPU|the kernels|torch_?gpu|bitsandbytes|deepspeed)": (
        "Hardware or a package that this machine lacks."
    ),
    r"test is slow": "Set RUN_SLOW=1 to run what Transformers calls slow.",
    r"does not support grouped_mm|no sparse experts|output_router_logits": "There are no experts.",
    r"`?base_model_class|inputs_embeds|test_resize_embeddings|language modeling head|sliding window|cache as input": (
        "There is no text part."
    ),
    r"position embeddings": "The position table is resized by `resolution`, see test_pretrained.py.",
    r"composite|does not support SDPA": "Backbone and decoder are parts of one model, not models inside a model.",
    r"Cannot capture hidden states|`capture_outputs` decorator": "Outputs are collected without Transformers' hooks.",
    r"_keep_in_fp32_modules": "No module is kept in float32: training is in float32 throughout.",
    r"No conversion found": "The files have the tensor names of the model.",
    r"not in MODEL_MAPPING": "Importing this package does not change what the classes of Transformers load.",
    r"TP plan": "There is no plan for tensor parallelism.",
    r"less than 2 backends|torchvision backend is not available|no PIL backend": ONE_BACKEND,
    r"No validation found|does not have dict size or list image_mean": "Mean and deviation are tuples.",
    r"No model with a differentiable loss|differentiable loss was available": NO_EMBEDDING_TABLE,
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Run all suites; {"Suite::test": (outcome, message)}."""
    folder = tmp_path_factory.mktemp("transformers")
    try:
        sources = unpacked_tests(folder)
    except Unavailable as error:
        pytest.skip(f"no source distribution of Transformers: {error}")
    report, tests = folder / "report.xml", HERE / "common_suites.py"
    command = [
        sys.executable, "-m", "pytest", str(tests), "-q", "-c", os.devnull, f"--rootdir={HERE}", "-W", "ignore",
        "-p", "no:cacheprovider", "--tb=short", "--timeout=120", f"--junitxml={report}",
    ]  # fmt: skip
    paths = [str(sources), str(sources / "needs"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1700, check=False)
    assert report.is_file(), done.stdout[-3000:] + done.stderr[-3000:]
    return dict(map(_outcome, ET.parse(report).iter("testcase")))


def _outcome(case):
    name = f"{case.get('classname').rsplit('.', 1)[-1]}::{case.get('name')}"
    for child in case:
        if child.tag in ("failure", "error", "skipped"):
            return name, (child.tag, child.get("message", ""))
    return name, ("passed", "")


def _reason(name):
    return next((why for pattern, why in EXPECTED.items() if re.search(f"{pattern}$", name)), None)


def _by_chance(name, message):
    return any(re.search(f"{test}$", name) and re.search(text, message) for test, text in UNSTEADY.items())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suite", SUITES)
def test_only_listed_tests_fail(outcomes, suite):
    ours = {name: found for name, found in outcomes.items() if name.startswith(suite)}
    assert len(ours) >= (25 if suite == "ImageProcessorTest" else 120), sorted(ours)
    failed = {name: message for name, (outcome, message) in ours.items() if outcome in ("failure", "error")}
    unlisted = {
        name: message[:300] for name, message in failed.items() if not (_reason(name) or _by_chance(name, message))
    }
    assert not unlisted, "\n".join(f"{name}: {message}" for name, message in unlisted.items())
    mended = [name for name, (outcome, _) in ours.items() if outcome == "passed" and _reason(name)]
    assert not mended, f"take out of EXPECTED: {mended}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_skipped_tests_do_not_concern_detectors(outcomes):
    skipped = {name: message for name, (outcome, message) in outcomes.items() if outcome == "skipped"}
    unknown = {name: message for name, message in skipped.items() if not any(re.search(p, message) for p in SKIPS)}
    assert not unknown, "\n".join(f"{name}: {message}" for name, message in unknown.items())
    assert sum(outcome == "passed" for outcome, _ in outcomes.values()) > 200
