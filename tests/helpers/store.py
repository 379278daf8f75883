"""An S3 server on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# What clients of the server have in their environment; the retries of their packages are off, so that ours are seen.
ACCESS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
          "NO_PROXY": "127.0.0.1", "AWS_MAX_ATTEMPTS": "1"}  # fmt: skip


@contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """The port of a server that has the Parquet and tar files of a folder in the bucket `data`, below `shards`."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    started = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    started.start()
    try:
        port = started.get_host_and_port()[1]
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys)
        client.create_bucket(Bucket="data")
        for path in sorted([*folder.rglob("*.parquet"), *folder.rglob("*.tar")]):
            client.upload_file(str(path), "data", f"shards/{path.relative_to(folder)}")
        yield port
    finally:
        started.stop()
