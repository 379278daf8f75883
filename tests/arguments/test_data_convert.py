"""Options of a conversion of data."""

import pytest

from rfdetr_hf import DataConvertArguments


def test_a_folder_with_content_is_refused_and_an_empty_one_is_taken(tmp_path):
    args = DataConvertArguments(str(tmp_path / "shards"))
    args.require_new()
    (tmp_path / "shards").mkdir()
    args.require_new()
    (tmp_path / "shards" / "mine").touch()
    with pytest.raises(FileExistsError, match="shards"):
        args.require_new()


@pytest.mark.parametrize("options", [{"format": "tar"}, {"shard_mb": 0}])
def test_what_no_writer_takes_is_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        DataConvertArguments("shards", **options)
