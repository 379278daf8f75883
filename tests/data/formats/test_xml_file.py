"""XML files of annotations: what a document type brings in is refused."""

import logging

import pytest
from helpers.voc import annotation

from rfdetr_hf import class_names, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError


def test_background_and_files_without_partner(voc, caplog):
    root = voc({"train": {"a": annotation(), "b": annotation([])}})
    (root / "Annotations" / "z.xml").write_text(annotation())
    with caplog.at_level(logging.INFO):
        train = load_detection_dataset(root)["train"]
    assert len(train[1]["objects"]["bbox"]) == 0 and "2 images, 1 of them background" in caplog.text
    assert "1 XML file is in none of the splits ['train'] and left out, such as Annotations/z.xml" in caplog.text
    (root / "ImageSets" / "Main" / "train.txt").unlink()
    (root / "Annotations" / "z.xml").unlink()
    (root / "Annotations" / "b.xml").unlink()
    assert len(load_detection_dataset(root)["train"]) == 1
    assert "1 picture is left out, without an XML file, such as b" in caplog.text


def test_documents_with_entities_are_refused(voc):
    bomb = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
    for declared in (bomb, '<!DOCTYPE x SYSTEM "file:///etc/passwd">'):
        root = voc({"train": {"a": declared + annotation(extra="<note>&b;</note>" if "ENTITY" in declared else "")}})
        with pytest.raises(DetectionDataError, match=r"a.xml: cannot be read as XML \(it declares the document type"):
            load_detection_dataset(root)
    text = annotation([("chèvre", (5, 7, 30, 40), 0)])
    root = voc({"train": {"a": text}})
    (root / "Annotations" / "a.xml").write_bytes(f'<?xml version="1.0" encoding="utf-16"?>{text}'.encode("utf-16"))
    (root / "Annotations" / "b.xml").write_text(annotation())
    assert class_names(load_detection_dataset(root)) == ["chèvre"]
