"""Formats of shards."""

FORMATS = ["parquet", "webdataset"]
