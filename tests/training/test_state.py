"""The rules of steps, epochs, skips and stops, without a training."""

import json
import logging
from pathlib import Path

import pytest
from helpers.runs import quick_arguments
from transformers import TrainerCallback, TrainerControl
from transformers.trainer_callback import ExportableState

from rfdetr_hf import BestModel, EarlyStopping
from rfdetr_hf.data.pipeline.order import ORDER
from rfdetr_hf.training.checkpoint.tree import from_json, to_json
from rfdetr_hf.training.state import FORMAT, RunState


def begun(steps_per_epoch=6, image_ids=range(24), strategy="replicated", world_size=1, annotations="boxes", **options):
    """The state of a run that begins."""
    state = RunState(best=BestModel("map"))
    state.begin(
        quick_arguments("run", **options), list(image_ids), annotations=annotations, steps_per_epoch=steps_per_epoch,
        images_per_step=4, strategy=strategy, world_size=world_size,
    )  # fmt: skip
    return state


def walk(state, steps):
    """Take steps as the loop does; an epoch that is through ends."""
    for _ in range(steps):
        if state.steps_left_in_epoch == 0:
            state.end_epoch()
        state.count_step()
    return state


def resumed(state, epoch_finished=False, control=None, due=False, **options):
    """The state of a run with these options that goes on from `state`."""
    state.mark(control or TrainerControl(), epoch_finished, due)
    again = begun(**options)
    again.check_same_run(Path("checkpoint"), state.state_dict())
    again.load_state_dict(state.state_dict(), state.callback_state())
    return again


@pytest.mark.parametrize(
    ("options", "steps", "epochs"),
    [
        ({"num_train_epochs": 2}, 12, 2),
        ({"num_train_epochs": 1.5}, 9, 2),
        ({"num_train_epochs": 0.1}, 1, 1),
        ({"max_steps": 7}, 7, 2),
        ({"max_steps": 6, "num_train_epochs": 100}, 6, 1),
    ],
)
def test_a_run_has_steps_and_begun_epochs(options, steps, epochs):
    state = begun(**options)
    assert (state.max_steps, state.num_train_epochs) == (steps, epochs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_update_interval": 7}, "ema_update_interval=7 is above the 6 steps"),
        ({"eval_delay": 2}, "eval_delay=2 is above the 1 epoch of"),
        ({"eval_delay": 7, "eval_strategy": "steps"}, "eval_delay=7 is above the 6 steps"),
    ],
)
def test_a_run_that_is_too_short_for_its_options_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        begun(max_steps=6, num_train_epochs=1, **options)
    begun(max_steps=12, **options)


def test_a_run_that_max_steps_cuts_for_a_trial_is_warned(caplog):
    caplog.set_level(logging.WARNING, logger="rfdetr_hf")
    begun(max_steps=2, eval_delay=5, ema_update_interval=10, ema_tau=0)
    assert "eval_delay=5 is above the 0.33" in caplog.text and "ema_update_interval=10 is above" in caplog.text
    assert len(caplog.messages) == 2, "nothing advises on a decay that no update has"
    caplog.clear()
    begun(max_steps=12, eval_delay=1, ema_update_interval=2)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"skip_best_epochs": 1},
            "skip_best_epochs=1 leaves out every evaluation of a run of 6 steps (1 epoch)",
        ),
        ({"skip_best_epochs": 0.9}, None),
        ({"skip_best_epochs": 1, "eval_strategy": "steps", "eval_steps": 4}, "leaves out every evaluation"),
        ({"skip_best_epochs": 0.7, "eval_strategy": "steps", "eval_steps": 4}, None),  # the last step is evaluated
        ({"skip_best_epochs": 0.9, "eval_strategy": "steps", "eval_steps": 0.5}, None),
        ({"skip_best_epochs": 5, "eval_strategy": "no"}, None),
        ({"eval_strategy": "steps", "eval_steps": 7}, None),
        ({"eval_strategy": "steps", "eval_steps": 6}, None),
        ({"ema_tau": 0}, "96% of the EMA weights, which best/ and last/ hold, are the initial ones"),
        ({"ema_tau": 0, "ema_decay": 0.5}, None),
        ({"ema_tau": 0, "use_ema": False}, None),
        ({}, None),
    ],
)
def test_a_run_that_is_short_for_its_options_is_told(options, message, caplog):
    begun(max_steps=6, **options)
    assert (message in caplog.text) if message else not caplog.text


def test_shares_of_the_run_become_steps():
    state = begun(
        max_steps=40, logging_steps=0.1, save_strategy="steps", save_steps=0.5, eval_strategy="steps", eval_steps=0.26
    )
    assert (state.logging_steps, state.save_steps, state.eval_steps) == (4, 20, 11)


def test_steps_and_epochs_are_counted():
    state = begun(num_train_epochs=3)
    assert state.steps_left_in_epoch == 6
    walk(state, 8)
    assert (state.global_step, state.epochs_done, state.steps_in_epoch) == (8, 1, 2)
    assert state.epoch == pytest.approx(8 / 6) and state.steps_left_in_epoch == 4


def test_the_last_epoch_is_as_long_as_the_run_allows():
    assert walk(begun(max_steps=8), 7).steps_left_in_epoch == 1


def test_skipped_steps_are_counted_and_too_many_in_a_row_end_the_run():
    state = begun()
    state.skip_step(0, [1], limit=3)
    state.skip_step(1, [2], limit=3)
    state.skipped_in_a_row = 0  # a good step came between
    state.skip_step(3, [3], limit=2)
    with pytest.raises(RuntimeError, match=r"2 steps in a row .* images \[4, 5\]"):
        state.skip_step(4, [4, 5], limit=2)
    assert state.skipped_steps == 4


@pytest.mark.parametrize("limit", [0, 1])
def test_no_patience_ends_at_the_first(limit):
    with pytest.raises(RuntimeError, match="1 step in a row"):
        begun().skip_step(0, [1], limit)


def test_a_run_goes_on_in_mid_epoch():
    state = resumed(walk(begun(num_train_epochs=3), 8), num_train_epochs=3)
    assert (state.global_step, state.epochs_done, state.steps_in_epoch) == (8, 1, 2)


def test_an_epoch_that_was_through_is_not_repeated():
    state = resumed(walk(begun(num_train_epochs=3), 6), epoch_finished=True, num_train_epochs=3)
    assert (state.epochs_done, state.steps_in_epoch) == (1, 0)


@pytest.mark.parametrize(("max_steps", "position"), [(8, (2, 0)), (14, (1, 2))])
def test_an_epoch_cut_short_by_max_steps_goes_on_where_there_are_more(max_steps, position):
    state = resumed(walk(begun(max_steps=8), 8), epoch_finished=True, max_steps=max_steps)
    assert (state.epochs_done, state.steps_in_epoch) == position


def test_an_epoch_that_a_callback_ended_is_over():
    control = TrainerControl(should_epoch_stop=True)
    state = resumed(walk(begun(num_train_epochs=3), 3), epoch_finished=True, control=control, num_train_epochs=3)
    assert (state.epochs_done, state.steps_in_epoch) == (1, 0)


@pytest.mark.parametrize(
    ("steps", "options", "stopped"),
    [
        (3, {"early_stopping_patience": 2}, True),
        (3, {"early_stopping_patience": 3}, False),
        (3, {"early_stopping_patience": 2, "early_stopping_threshold": 0.5}, False),
        (12, {"early_stopping_patience": 2}, False),
    ],
)
def test_a_run_that_a_callback_ended_stays_ended_while_its_rules_hold(steps, options, stopped):
    rules = {"num_train_epochs": 2, "eval_strategy": "steps", "eval_steps": 1}
    state = walk(begun(**rules, early_stopping_patience=2), steps)
    assert resumed(state, control=TrainerControl(should_training_stop=True), **rules, **options).stopped is stopped


def test_what_was_due_is_done_after_a_resume():
    control = TrainerControl(should_evaluate=True, should_save=True)
    assert resumed(walk(begun(), 2), control=control).due == {}
    due = resumed(walk(begun(), 2), control=control, due=True).due
    assert due["should_evaluate"] and due["should_save"] and not due["should_log"]


def test_the_best_and_the_history_are_kept():
    state = walk(begun(), 2)
    state.best.update({"eval_map": 0.25}, epoch=0.3, step=2)
    state.best_weights, state.best_metric, state.best_global_step = "abc", 0.25, 2
    state.log_history.append({"loss": 1.0, "step": 2})
    again = resumed(state)
    assert (again.best.score, again.best.source, again.best.step) == (0.25, "ema", 2)
    assert (again.best_weights, again.best_metric, again.best_global_step) == ("abc", 0.25, 2)
    assert again.log_history == [{"loss": 1.0, "step": 2}]


def test_callbacks_keep_their_state():
    stopping, again = (EarlyStopping("map", 5) for _ in range(2))
    stopping.best, stopping.evaluations_without_improvement = 0.5, 3
    state = begun()
    state.keep_callbacks([stopping])
    resumed(state).restore_callbacks([again])
    assert (again.best, again.evaluations_without_improvement) == (0.5, 3)


def test_a_snapshot_stays_as_it_is():
    state = walk(begun(), 2)
    kept = state.snapshot()
    walk(state, 1)
    state.log_history.append({"loss": 1.0})
    assert kept.global_step == 2 and kept.log_history == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_ids": range(23)}, "24 training images, this run has 23; resume with the same data"),
        ({"image_ids": range(24, 0, -1)}, r"image ids \(as a checksum\)"),
        ({"annotations": "others"}, "with boxes sizes, boxes and labels .* resume with those of the"),
        ({"seed": 7}, "42 as its seed, this run has 7"),
        ({"steps_per_epoch": 5}, "6 steps in an epoch, this run has 5"),
        ({"learning_rate": 1e-5}, "learning_rate=0.0001, which its optimizer keeps, and this run has 1e-05"),
        ({"image_decoder": "simplejpeg"}, "image_decoder=pillow, whose pixels .* set image_decoder=pillow, or"),
    ],
)
def test_another_run_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        resumed(begun(), **options)


@pytest.mark.parametrize("version", ["format", "order"])
def test_a_checkpoint_of_another_version_is_refused_by_name(version):
    with pytest.raises(ValueError, match=f"this version resumes formats up to {FORMAT} and orders up to {ORDER}"):
        begun().check_same_run(Path("checkpoint"), begun().state_dict() | {version: 99})


def test_a_checkpoint_without_versions_is_of_the_first():
    state = begun()
    written = {name: value for name, value in state.state_dict().items() if name not in ("format", "order")}
    state.check_same_run(Path("checkpoint"), written)
    assert state.order == ORDER
    state.load_state_dict(written, state.callback_state())
    assert state.order == state.state_dict()["order"] == 1  # and its checkpoints say so


def test_a_checkpoint_of_before_decoders_was_written_by_pillow():
    written = begun().state_dict()
    written["arguments"] = {name: value for name, value in written["arguments"].items() if name != "image_decoder"}
    begun().check_same_run(Path("checkpoint"), written)
    with pytest.raises(ValueError, match="image_decoder=pillow"):
        begun(image_decoder="simplejpeg").check_same_run(Path("checkpoint"), written)


def test_other_arguments_and_processes_are_named(caplog):
    with caplog.at_level(logging.WARNING, logger="rfdetr_hf"):
        resumed(begun(), world_size=2, horizontal_flip=0.0)
    assert "arguments changed since checkpoint was written: horizontal_flip 0.5 -> 0.0" in caplog.messages
    assert any("was written by 1 processes and is resumed by 2" in message for message in caplog.messages)


def test_the_seconds_of_a_run_are_those_of_all_its_parts():
    state = begun()
    state.count_seconds()
    state.seconds = 3600.0
    again = resumed(state)
    again.count_seconds()
    again.count_seconds()
    assert 3600 <= again.seconds < 3700
    earlier = begun()
    earlier.load_state_dict({k: v for k, v in state.state_dict().items() if k != "seconds"}, state.callback_state())
    earlier.count_seconds()
    earlier.count_seconds()
    assert earlier.seconds is None, "an earlier checkpoint does not tell"


class Counting(TrainerCallback, ExportableState):
    def __init__(self, *by):
        self.by, self.count = by, 0

    def state(self):
        return {"args": {"by": self.by}, "attributes": {"count": self.count}}


def counted_again(written, present):
    """What callbacks of a resumed run have, by the numbers that those of the checkpoint and of the run count by."""
    state, again = begun(), [Counting(by) for by in present]
    state.stateful_callbacks = None
    before = [Counting(by) for by in written]
    for callback in before:
        callback.count = 4 * callback.by[0]
    state.keep_callbacks(before)
    after = resumed(state)
    after.stateful_callbacks = json.loads(json.dumps(after.stateful_callbacks))
    after.restore_callbacks(again)
    return [callback.count for callback in again]


@pytest.mark.parametrize(
    ("written", "present", "counts"),
    [((1, 10), (1, 10), [4, 40]), ((1, 10), (10, 1), [40, 4]), ((1, 10), (10,), [40]), ((1, 10), (2, 1), [40, 4]),
     ((1,), (2,), [4]), ((1, 2), (3, 4), [4, 8]), ((1,), (5, 1), [0, 4]), ((3, 3), (3, 3), [12, 12]),
     ((1, 2, 3), (3, 1), [12, 4])],
)  # fmt: skip
def test_callbacks_of_one_class_are_known_by_their_arguments(written, present, counts):
    assert counted_again(written, present) == counts


def test_arguments_that_are_tuples_lead_to_their_callback():
    before, again = (
        [Counting((1, 2), {3: 4}), Counting((5, 6), {3: 4})],
        [Counting((5, 6), {3: 4}), Counting((1, 2), {3: 4})],
    )
    before[0].count, before[1].count = 12, 56
    state = begun()
    state.keep_callbacks(before)
    after = resumed(state)
    after.stateful_callbacks = from_json(json.loads(json.dumps(to_json(after.stateful_callbacks))))
    after.restore_callbacks(again)
    assert [callback.count for callback in again] == [56, 12]


def test_a_callback_that_begins_afresh_is_named(caplog):
    stopping, again = EarlyStopping("map", 5), EarlyStopping("map_50", 5)
    stopping.best = 0.5
    state = begun()
    state.keep_callbacks([stopping])
    resumed(state).restore_callbacks([again])
    assert (
        again.best != 0.5
        and "EarlyStopping begins afresh: metric=map_50 now, and in the checkpoint metric=map" in caplog.text
    )
