"""One run and one time line in a directory; a user's files in it are moved, never deleted."""

import os
import shutil

import pytest
from helpers.run_directories import Run, aside, metrics, start, steps_in

from rfdetr_hf.training.checkpoint.directory import atomic_directory, set_aside
from rfdetr_hf.training.checkpoint.lock import RunInUse


def content(path):
    return (path / "model.safetensors").read_text()


def test_going_back_sets_what_follows_aside(tmp_path):
    first = start(tmp_path, 2, 4, 6, 8, 10)
    metrics(tmp_path, 2, 4, 6, 8, 8, 10)
    first.write(tmp_path / "last", 10)
    first.write(tmp_path / "best", 4)
    for step in (4, 8):
        (tmp_path / "eval" / str(step)).mkdir(parents=True)
        (tmp_path / "eval" / str(step) / "metrics.json").write_text("{}")
    second = start(tmp_path, resume=str(tmp_path / "checkpoint-6"), name="second")
    assert second.checkpoint == tmp_path / "checkpoint-6" and steps_in(tmp_path) == [2, 4, 6]
    assert aside(tmp_path) == {
        *(f"rewind-to-6/{name}/{file}" for name in ("checkpoint-8", "checkpoint-10", "last")
          for file in ("model.safetensors", "manifest.json")),
        "rewind-to-6/eval/8/metrics.json", "rewind-to-6/metrics.csv",
    }  # fmt: skip
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,loss", "2,0.5", "4,0.5", "6,0.5"]
    (past,) = tmp_path.glob("set-aside/*/metrics.csv")
    assert past.read_text().split() == ["step,loss", "8,0.5", "8,0.5", "10,0.5"]
    assert content(tmp_path / "best") == "first 4"


@pytest.mark.parametrize("best", [2, 8])
def test_the_pictures_of_a_best_model_go_where_it_goes(tmp_path, best):
    first = start(tmp_path, 2, 4, 6, 8)
    first.write(tmp_path / "best", best)
    for name in ("val_pred.jpg", "report.html", "labels.jpg"):
        (tmp_path / name).write_text("of the first")
    start(tmp_path, resume=str(tmp_path / "checkpoint-4"), name="second")
    moved = {f"rewind-to-4/{name}" for name in ("val_pred.jpg", "report.html", "best/model.safetensors")}
    assert (aside(tmp_path) >= moved) == (best == 8) and (tmp_path / "labels.jpg").is_file()
    assert (tmp_path / "report.html").is_file() == (best == 2)


def test_after_a_rewind_that_was_killed_the_newest_is_that_of_the_new_line(tmp_path, monkeypatch):
    """Before, `--resume` took the old checkpoint-10."""
    start(tmp_path, 2, 6, 8, 10)
    killed = Run(tmp_path, resume=str(tmp_path / "checkpoint-6"))
    killed.end()
    for path in tmp_path.glob("set-aside/*/checkpoint-*"):
        shutil.move(path, tmp_path / path.name)  # as if it had been killed before it moved them
    again = start(tmp_path, resume=True)
    assert again.checkpoint == tmp_path / "checkpoint-6" and steps_in(tmp_path) == [2, 6]
    again = Run(tmp_path, resume="auto", name="second").save(7, 8, keep=2)
    again.end()
    assert steps_in(tmp_path) == [7, 8] and content(tmp_path / "checkpoint-8") == "second 8"
    assert start(tmp_path, resume="true").checkpoint == tmp_path / "checkpoint-8"


def test_rotation_leaves_new_checkpoints_where_later_ones_were(tmp_path):
    start(tmp_path, 2, 6, 10, 12)
    run = Run(tmp_path, resume=str(tmp_path / "checkpoint-2")).save(3, 4, 5, keep=2)
    run.end()
    assert steps_in(tmp_path) == [4, 5]


def test_what_was_set_aside_can_be_taken_up_again(tmp_path):
    start(tmp_path, 2, 4)
    start(tmp_path, 3, resume=str(tmp_path / "checkpoint-2"), name="second")
    (old,) = tmp_path.glob("set-aside/*/checkpoint-4")
    back = start(tmp_path, 6, resume=str(old))
    assert back.checkpoint == old and steps_in(tmp_path) == [2, 6]
    assert any(path.startswith("rewind-to-4/checkpoint-3/") for path in aside(tmp_path))


def test_going_back_to_what_was_set_aside_leaves_nothing_of_the_other_line(tmp_path):
    """Before, best/, scores and rows of the line that is left stayed where they lay below the step."""
    start(tmp_path, 2, 4, 6)
    metrics(tmp_path, 2, 4, 6)
    other = start(tmp_path, 3, 4, resume=str(tmp_path / "checkpoint-2"), name="second")
    other.write(tmp_path / "best", 4)
    other.write(tmp_path / "last", 4)
    metrics(tmp_path, 2, 3, 4)
    (tmp_path / "report.html").write_text("of the second")
    for step in (2, 4):
        (tmp_path / "eval" / str(step)).mkdir(parents=True)
        (tmp_path / "eval" / str(step) / "metrics.json").write_text("{}")
    (old,) = tmp_path.glob("set-aside/*/checkpoint-6")
    start(tmp_path, 8, resume=str(old), name="third")
    assert steps_in(tmp_path) == [2, 8] and not (tmp_path / "best").exists() and not (tmp_path / "last").exists()
    expected = {"best/model.safetensors", "last/model.safetensors", "eval/4/metrics.json", "metrics.csv", "report.html"}
    assert {f"rewind-to-6/{name}" for name in expected} <= aside(tmp_path) and (tmp_path / "eval" / "2").is_dir()
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,loss", "2,0.5"]


def test_the_best_model_of_this_line_stays_when_a_checkpoint_of_another_is_moved_away(tmp_path):
    start(tmp_path, 2, 4, 6)
    shutil.copytree(tmp_path / "checkpoint-6", tmp_path / "kept")
    second = start(tmp_path, 4, 8, resume=str(tmp_path / "checkpoint-2"), name="second")
    second.write(tmp_path / "best", 8)
    metrics(tmp_path, 2, 4, 8)
    shutil.move(tmp_path / "kept", tmp_path / "checkpoint-6")
    start(tmp_path, resume=True)
    assert content(tmp_path / "best") == "second 8" and steps_in(tmp_path) == [2, 4, 8]
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,loss", "2,0.5", "4,0.5", "8,0.5"]


def test_going_on_from_the_newest_moves_nothing(tmp_path):
    start(tmp_path, 2, 4)
    for resume in (True, "auto", str(tmp_path / "checkpoint-4")):
        start(tmp_path, resume=resume)
    assert steps_in(tmp_path) == [2, 4] and not (tmp_path / "set-aside").exists()


@pytest.mark.parametrize("other", ["external", "copied"])
def test_another_run_is_not_written_into(tmp_path, other):
    a, b = tmp_path / "a", tmp_path / "b"
    start(a, 4)
    start(b, 2, 8, name="b")
    given = a / "checkpoint-4"
    if other == "copied":
        given = shutil.copytree(given, b / "checkpoint-4")
    before = {path: path.stat().st_mtime_ns for path in b.rglob("*")}
    with pytest.raises(FileExistsError, match=r"of another run .* choose another output_dir .*=True"):
        start(b, resume=str(given))
    assert before == {path: path.stat().st_mtime_ns for path in b.rglob("*")}


def test_a_run_goes_on_elsewhere_and_is_another_one_there(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    start(a, 4, 6)
    assert start(b, 5, resume=str(a / "checkpoint-4")).checkpoint == a / "checkpoint-4"
    assert steps_in(a) == [4, 6] and start(b, resume="auto").checkpoint == b / "checkpoint-5"
    with pytest.raises(FileExistsError, match="of another run"):
        start(b, resume=str(a / "checkpoint-4"))


def test_a_moved_run_and_a_backup_of_its_own_go_on(tmp_path):
    start(tmp_path / "a", 4, 6)
    backup = shutil.copytree(tmp_path / "a" / "checkpoint-4", tmp_path / "backup")
    (tmp_path / "a").rename(tmp_path / "b")
    assert start(tmp_path / "b", resume=True).checkpoint.name == "checkpoint-6"
    assert start(tmp_path / "b", resume=str(backup)).checkpoint == backup
    assert steps_in(tmp_path / "b") == [4]


def test_without_a_status_the_checkpoints_tell(tmp_path):
    start(tmp_path, 2, 6)
    start(tmp_path, 3, resume=str(tmp_path / "checkpoint-2"))
    (tmp_path / "status.json").unlink()
    assert start(tmp_path, resume=True).checkpoint == tmp_path / "checkpoint-3"
    start(tmp_path / "other", 9)
    shutil.copytree(tmp_path / "other" / "checkpoint-9", tmp_path / "checkpoint-9")
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(FileExistsError, match="checkpoints of several runs"):
        start(tmp_path, resume=True)


def test_checkpoints_of_an_earlier_version_are_one_line(tmp_path):
    for step in (2, 4, 6):
        with atomic_directory(tmp_path / f"checkpoint-{step}") as folder:
            (folder / "model.safetensors").write_text("old")
    assert start(tmp_path, resume=True).checkpoint == tmp_path / "checkpoint-6"
    (tmp_path / "status.json").unlink()
    assert start(tmp_path, resume=str(tmp_path / "checkpoint-4")).checkpoint == tmp_path / "checkpoint-4"
    assert steps_in(tmp_path) == [2, 4]


def test_a_refusal_leaves_the_lock_and_the_status_as_they_were(tmp_path):
    run = Run(tmp_path).save(2)
    status = (tmp_path / "status.json").read_bytes()
    for resume in (None, True, "auto", str(tmp_path / "checkpoint-2")):
        run.directory.lock.beat = 30.0
        if resume != "auto":
            with pytest.raises(RunInUse):
                start(tmp_path, resume=resume)
    run.end()
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        start(tmp_path)
    assert (tmp_path / "status.json").read_bytes() == status and not (tmp_path / "run.lock").exists()


# ---------------------------------------------------------------------------------------------------- a user's files


def test_a_users_files_outlive_replacement_and_rotation(tmp_path):
    run = Run(tmp_path)
    run.write(tmp_path / "last", 1)
    (tmp_path / "last" / "NOTES.txt").write_text("mine")
    (tmp_path / "last" / "more" / "deep").mkdir(parents=True)
    (tmp_path / "last" / "more" / "deep" / "photo.jpg").write_text("mine")
    (tmp_path / "last" / "link").symlink_to("/nowhere")
    (tmp_path / "last" / "model.safetensors").write_text("mine, edited")
    run.write(tmp_path / "last", 2)
    run.save(1, 2)
    (tmp_path / "checkpoint-1" / "NOTES.txt").write_text("mine")
    run.save(3, keep=2)
    run.end()
    assert steps_in(tmp_path) == [2, 3] and content(tmp_path / "last") == "first 2"
    kept = {f"replaced-last/last/{n}" for n in ("NOTES.txt", "more/deep/photo.jpg", "link", "model.safetensors")}
    assert aside(tmp_path) == kept | {"deleted-checkpoint-1/checkpoint-1/NOTES.txt"}
    assert {p.read_text() for p in tmp_path.glob("set-aside/*/*/*") if p.is_file()} == {"mine", "mine, edited"}


@pytest.mark.parametrize("keeps_time", [False, True])
def test_large_weights_of_a_user_outlive_replacement(tmp_path, keeps_time):
    run, size = Run(tmp_path), 3 << 20
    with atomic_directory(tmp_path / "last", run.directory.about(1)) as folder:
        for name in ("model.safetensors", "ema.safetensors", "touched.safetensors"):
            (folder / name).write_bytes(b"a" * size)
    mine = tmp_path / "last" / "model.safetensors"
    mine.write_bytes(b"m" * size)
    if keeps_time:
        os.utime(mine, (1, 1))
    os.utime(tmp_path / "last" / "touched.safetensors", (2, 2))  # another time, the same content: as a copy has it
    run.write(tmp_path / "last", 2)
    run.end()
    assert aside(tmp_path) == {"replaced-last/last/model.safetensors"}
    (kept,) = tmp_path.glob("set-aside/*/last/model.safetensors")
    assert kept.read_bytes() == b"m" * size


def test_a_users_files_outlive_a_kill_between_the_renames(tmp_path):
    run = Run(tmp_path)
    run.write(tmp_path / "last", 1)
    (tmp_path / "last" / "NOTES.txt").write_text("mine")
    (tmp_path / "last").rename(tmp_path / ".del-last")
    run.write(tmp_path / "last", 2)
    run.end()
    run = start(tmp_path, resume="auto", arguments={})
    assert "replaced-last/last/NOTES.txt" in aside(tmp_path) and not (tmp_path / ".del-last").exists()


def test_names_that_are_taken_get_a_number(tmp_path):
    for _ in range(3):
        (tmp_path / "a.txt").write_text("mine")
        folder = set_aside(tmp_path, [tmp_path / "a.txt"], "why")
    assert len([p for p in (tmp_path / "set-aside").rglob("a.txt*") if p.is_file()]) == 3
    assert folder.name.endswith("-why") and set_aside(tmp_path, [], "nothing") is None


def test_folders_that_only_look_like_checkpoints_are_not_deleted(tmp_path):
    run = Run(tmp_path).save(5)
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "thesis.tex").write_text("mine")
    run.save(6, 7, keep=1)
    run.end()
    assert steps_in(tmp_path) == [1, 7]


# ---------------------------------------------------------------------------------------------------- before step 1


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_stands_in_the_way_of_a_later_save_is_moved_before(tmp_path, kind, caplog):
    start(tmp_path, 2)
    if kind == "folder":
        (tmp_path / "checkpoint-4").mkdir()
        (tmp_path / "checkpoint-4" / "a").write_text("mine")
    else:
        (tmp_path / "checkpoint-4").write_text("mine")
    start(tmp_path, 4, resume=True)
    assert len(aside(tmp_path)) == 1 and "checkpoint-4 is set aside" in caplog.text
    assert content(tmp_path / "checkpoint-4") == "first 4"


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_model_folder_that_is_not_ours_is_refused_before_the_training(tmp_path, name):
    start(tmp_path, 2)
    (tmp_path / name).mkdir()
    (tmp_path / name / "photo.jpg").write_text("mine")
    with pytest.raises(FileExistsError, match=rf"{name} exists and is no checkpoint of this trainer.*move it away"):
        start(tmp_path, resume=True)


@pytest.mark.parametrize(
    "name", ["metrics.csv", "train.log", "args.yaml", "status.json", "metrics.csv.tmp", ".status.json.tmp"]
)
def test_a_folder_in_place_of_a_file_is_refused(tmp_path, name):
    start(tmp_path, 2)
    shutil.rmtree(tmp_path / name, ignore_errors=True)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match=f"{name} is a folder"):
        start(tmp_path, resume=True)


@pytest.mark.parametrize(
    "name", ["last", "best", "eval", "set-aside", "eval/4", "eval/4/raw", ".tmp-last", ".tmp-checkpoint-4"]
)
def test_a_file_in_place_of_a_folder_is_refused(tmp_path, name):
    start(tmp_path, 2)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{name} is a file"):
        start(tmp_path, resume=True)


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="output_dir .*file/run cannot be written"):
        start(tmp_path / "file" / "run")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not stop this user")
def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written"):
        start(tmp_path)


def test_a_disk_that_is_too_small_is_told(tmp_path, monkeypatch, caplog):
    run = Run(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 5 * 10**8))
    with pytest.raises(OSError, match=r"0\.60 GB are needed .* 0\.50 GB are free"):
        run.directory.check_space(4 * 10**8, 2 * 10**8, 2)
    run.directory.check_space(3 * 10**8, 10**8, 2)
    assert "may become full" in caplog.text
    run.end()
