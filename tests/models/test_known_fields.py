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
