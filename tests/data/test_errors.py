"""Several faults of one file in one error."""

import pytest

from rfdetr_hf.data.errors import DetectionDataError, Problems


def test_several_faults_come_in_one_message(tmp_path, load_file, coco_content):
    content = coco_content()
    content["annotations"][0]["bbox"] = [float("nan"), 0, 1, 1]
    content["annotations"][1]["category_id"] = 1
    with pytest.raises(DetectionDataError, match="2 problems") as error:
        load_file(content)
    assert "annotation id 10" in str(error.value) and "annotation id 11" in str(error.value)


def test_problems_lists_ten_and_counts_all():
    problems = Problems("file.json")
    problems.raise_if_any()
    problems.add_all((f"fault {i}" for i in range(12)), "mend it")
    with pytest.raises(DetectionDataError) as error:
        problems.raise_if_any()
    text = str(error.value)
    assert text.startswith("file.json: 12 problems") and "fault 9" in text and "fault 10" not in text
    assert "2 more" in text and text.count("mend it") == 1
