"""Fields that are none: refused in calls, kept of files."""

import json
import re
from functools import partial

import pytest

from rfdetr_hf import RFDETRConfig


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"num_querys": 5}, "did you mean 'num_queries'?"),
        ({"num_classes": 3}, "did you mean 'num_labels'?"),
        ({"patch_size": 8}, "patch_size is a field of RFDETRBackboneConfig"),
        ({"backbone_config": {"drop_path": 0.3}}, "did you mean 'drop_path_rate'?"),
        ({"backbone_config": {"num_queries": 5}}, "num_queries is a field of RFDETRConfig"),
        ({"zzz": 1}, "see the attributes of RFDETRConfig"),
    ],
)
def test_unknown_fields_of_calls(fields, hint):
    with pytest.raises(TypeError, match=re.escape(hint)):
        RFDETRConfig(**fields)
    for change in (RFDETRConfig().with_fields, partial(RFDETRConfig.from_variant, "nano")):
        with pytest.raises(ValueError, match=re.escape(hint)):
            change(**fields)


def test_unknown_fields_of_files_stay(tmp_path):
    fields = RFDETRConfig().to_dict()
    RFDETRConfig(**fields)
    fields |= {"theirs": 1, "backbone_config": {**fields["backbone_config"], "theirs": 2}}
    (tmp_path / "config.json").write_text(json.dumps(fields, default=str))
    for config in (RFDETRConfig.from_pretrained(tmp_path), RFDETRConfig.from_dict(fields).with_fields(num_queries=9)):
        assert (config.theirs, config.backbone_config.theirs) == (1, 2)


def test_fields_beside_a_file_are_checked(tmp_path):
    RFDETRConfig(num_labels=3).save_pretrained(tmp_path)
    for names in ({"id2label": {0: "a", 1: "b"}}, {"label2id": {"a": 0, "b": 1}}):
        config = RFDETRConfig.from_pretrained(tmp_path, **names, num_queries=5, backbone_config={"num_windows": 1})
        assert (config.id2label, config.label2id, config.num_queries) == ({0: "a", 1: "b"}, {"a": 0, "b": 1}, 5)
        assert config.backbone_config.num_windows == 1 and config.backbone_config.patch_size == 16
    for wrong, message in (
        ({"resolution": 65}, "resolution 65 is not divisible"), ({"num_querys": 5}, "did you mean 'num_queries'"),
        ({"id2label": {1: "a", 5: "b"}}, "ids 1, 5"), ({"backbone_config": {"drop_path": 0.1}}, "drop_path_rate"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            RFDETRConfig.from_pretrained(tmp_path, **wrong)
    config, left = RFDETRConfig.from_pretrained(tmp_path, return_unused_kwargs=True, theirs=1, dtype="float16")
    assert (left, config.dtype) == ({"theirs": 1}, "float16")
    config = RFDETRConfig.from_pretrained(tmp_path, attn_implementation="eager", trust_remote_code=True, task="none")
    assert config.num_labels == 3 and config._attn_implementation == "eager"
