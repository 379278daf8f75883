import copy
import pickle

import pytest
import torch
from helpers.models import deep_config, tiny_model
from torch._dynamo.testing import CompileCounterWithBackend

from rfdetr_hf import RFDETRForObjectDetection
from rfdetr_hf.models import compilation

SIDES = (96, 64, 128, 160, 192, 224, 256, 288)


pytestmark = pytest.mark.usefixtures("fresh_graphs")


def small_model(**overrides):
    small = {"num_hidden_layers": 1, "out_indices": [1]} | overrides.pop("backbone_config", {})
    torch.manual_seed(0)
    fields = {"decoder_layers": 1, "c2f_num_blocks": 1} | overrides
    model = RFDETRForObjectDetection(deep_config(small, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    return model


def labels(batch):
    return [
        {"class_labels": torch.tensor([i % 5]), "boxes": torch.tensor([[0.5, 0.4, 0.3, 0.2]])} for i in range(batch)
    ]


def results(model, pixels, rate, mask=None):
    """Logits, boxes, and in training the gradients."""
    model.zero_grad()
    torch.manual_seed(1)  # of drop path
    with torch.set_grad_enabled(model.training):
        outputs = model(pixels, mask, labels=labels(len(pixels)), drop_path_rate=rate)
    found = {"loss": outputs.loss, "logits": outputs.logits, "boxes": outputs.pred_boxes}
    if model.training:
        outputs.loss.backward()
        found |= {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {name: each.detach().clone() for name, each in found.items()}


def count_graphs(backend, make, passes, tolerance):
    """Graphs over passes of (training, drop path rate, batch, side), each compared with the model as it is."""
    plain, model = make(), make()
    counter = CompileCounterWithBackend(backend)
    model.compile_network(counter)
    for training, rate, batch, side in passes:
        pixels = torch.randn(batch, 3, side, side)
        expected = results(plain.train(training), pixels, rate)
        torch.testing.assert_close(results(model.train(training), pixels, rate), expected, **tolerance)
    return counter.frame_count


def test_one_graph_serves_all_sizes_of_training():
    passes = [(True, 0.0, 3, side) for side in (96, 64, 128)]
    assert count_graphs("aot_eager", small_model, passes, {"rtol": 1e-4, "atol": 1e-5}) == 1


@pytest.mark.slow
def test_few_graphs_of_inductor_serve_all_sizes(caplog):
    deeper = {"decoder_layers": 2, "backbone_config": {"num_hidden_layers": 2, "out_indices": [1, 2]}}
    passes = [(True, rate, 3, side) for rate in (0.0, 0.1) for side in SIDES]
    # The last batch of an evaluation is smaller.
    passes += [(False, 0.0, batch, side) for batch in (3, 2) for side in SIDES]
    graphs = count_graphs("inductor", lambda: small_model(**deeper), passes, {"rtol": 1e-3, "atol": 1e-4})
    assert graphs <= 6
    assert not any(record.name.startswith("rfdetr_hf") for record in caplog.records)


def test_padding_rectangles_and_rates_need_no_other_graph():
    plain, model = small_model().train(), small_model().train()
    counter = CompileCounterWithBackend("eager")
    model.compile_network(counter)
    for height, width, rate in ((96, 64, 0.1), (64, 128, 0.2), (128, 96, 0.3)):
        mask = torch.ones(2, height, width)
        mask[1, 32:] = 0
        pixels = torch.randn(2, 3, height, width)
        expected = results(plain, pixels, rate, mask)
        torch.testing.assert_close(results(model, pixels, rate, mask), expected, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


def test_a_graph_too_many_is_a_warning_and_runs_as_it_is(monkeypatch, caplog):
    monkeypatch.setattr(compilation, "MAX_GRAPHS", 1)
    plain, model = small_model().eval(), small_model().eval()
    with torch._dynamo.config.patch(recompile_limit=1):
        model.compile_network("eager")
        for _ in range(2):
            for training in (False, True):
                pixels = torch.randn(2, 3, 64, 64)
                expected = results(plain.train(training), pixels, 0.0)
                torch.testing.assert_close(results(model.train(training), pixels, 0.0), expected)
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("rfdetr_hf")]
    assert len(warnings) == 1 and "1 graphs are compiled, and a batch of the shape (2, 3, 64, 64)" in warnings[0]


def test_names_stay_and_copies_are_not_compiled():
    model = small_model()
    names = list(model.state_dict())
    model.compile_network("eager")
    assert list(model.state_dict()) == names
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._compiled is None and model._compiled is not None
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))


def test_sizes_that_do_not_fit_are_refused_as_without_compilation():
    model = tiny_model()
    model.compile_network("eager")
    with pytest.raises(ValueError, match="60 x 64 pixels: both sides must be divisible"):
        model(torch.zeros(1, 3, 60, 64))
