"""The page of an audit."""

from helpers.findings import edit

from rfdetr_hf import audit_data, load_detection_dataset, make_shapes_dataset, write_audit_page


def test_the_tables_say_in_how_many_images_a_class_is_labelled(tmp_path):
    splits = {"train": make_shapes_dataset(4, image_size=48).add_column("labelled_classes", [[0], [0, 2], None, []])}
    found = audit_data(splits, cache_dir=tmp_path / "cache")
    assert found.to_dict()["splits"]["train"]["labelled_images"] == {"circle": 3, "square": 1, "triangle": 2}
    boxes = found.reports["train"].boxes_per_class["circle"]
    assert f"{boxes}/3" in str(found) and "labelled completely" in str(found)
    assert "labelled in" in str(found.reports["train"])
    write_audit_page(found, splits, tmp_path / "page.html")
    assert f"{boxes}/3" in (tmp_path / "page.html").read_text()


def test_the_page_shows_pictures_of_each_finding(sound_folder, tmp_path):
    edit(sound_folder, "train", lambda content: content["annotations"][0]["bbox"].__setitem__(2, 0.5))
    splits = load_detection_dataset(sound_folder)
    found = audit_data(splits, cache_dir=tmp_path / "cache")
    write_audit_page(found, splits, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<img") == len(found.findings) == 1
