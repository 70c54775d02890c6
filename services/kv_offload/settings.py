"""What a kv-offload can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from armature.runtime.addresses import is_loopback
from armature.runtime.redis_client import RedisSettings
from armature.runtime.s3_client import S3Bucket
from armature.runtime.settings import option


@dataclass(frozen=True, kw_only=True)
class KvOffloadSettings(RedisSettings):
    """Keeps KV blocks of its node's workers in slower, larger memory than theirs."""

    model: str = option("", help="model whose workers it serves; empty: that of the first worker seen on its node")
    policy: str = option(
        "frequency", help="what the tiers take in and let go: frequency, tinylfu, cost, all, or a file NAME.yaml"
    )
    host_bytes: int = option(1 << 30, help="size of tier G2, host memory; as much as the machine can spare")
    disk_dir: Path | None = option(None, help="directory of tier G3, on a quick local disk; without one there is none")
    disk_bytes: int = option(8 << 30, help="size of tier G3, if it has a directory; below what is free there")
    remote_bytes: int = option(0, help="size of this node's part of tier G4; 0: none; needs remote, or redis")
    remote: str = option(
        "", help="where tier G4 is: s3://bucket[/prefix], or a Redis as in redis; empty: in redis", secret=True
    )
    remote_ttl_s: float = option(86400.0, help="how long tier G4 keeps a block that nobody stores again")
    remote_timeout_s: float = option(2.0, help="longest wait for one block of tier G4; raise it for slow links")
    s3_endpoint: str = option("", help="https://host[:port] of a store that is not AWS's; http:// goes without TLS")
    s3_region: str = option("", help="region of the bucket; empty: AWS_REGION, else us-east-1")
    s3_access_key: str = option(
        "", help="access key id; empty: credentials as AWS's tools find them: AWS_ACCESS_KEY_ID, roles", secret=True
    )
    s3_secret_key: str = option("", help="secret access key of s3_access_key", secret=True)
    s3_virtual_host: bool = option(
        False, help="bucket in the host name in place of the path, for stores that want it there"
    )
    transport: Literal["nixl", "grpc"] = option("nixl", help="how KV moves; grpc where NIXL is not to be had")
    lease_s: float = option(30.0, help="how long blocks are kept for a worker that could have read them")
    read_timeout_s: float = option(5.0, help="longest wait for one read of a worker's blocks over grpc")
    max_takes: int = option(16, help="offers of workers that are read at a time; further ones wait")
    remembered_blocks: int = option(
        1 << 18, help="blocks whose past use is remembered, some 200 bytes each; several times what the tiers hold"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("host_bytes", "disk_bytes", "max_takes", "remembered_blocks"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1")
        for key in ("remote_ttl_s", "remote_timeout_s", "lease_s", "read_timeout_s"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key} must be above 0")
        if self.remote_bytes < 0:
            raise ValueError("remote_bytes must be at least 0")
        if self.remote_bytes and not (self.remote or self.redis):
            raise ValueError("remote_bytes needs remote or redis: set one of them, or remote_bytes to 0")
        if self.remote and not self.remote.startswith(("s3://", "redis://", "rediss://", "unix://")):
            raise ValueError("remote must begin with s3://, redis://, rediss:// or unix://")
        if self.remote and not self.remote_bytes:
            raise ValueError("remote_bytes is the room in remote: set it above 0, or leave out remote")
        _ = self.bucket

    @property
    def bucket(self) -> S3Bucket | None:
        """Where tier G4 is, if it is in S3.

        Raises:
            ValueError: a setting makes no sense.
        """
        if not self.remote.startswith("s3://"):
            return None
        return S3Bucket(
            url=self.remote,
            endpoint=self.s3_endpoint,
            region=self.s3_region,
            access_key=self.s3_access_key,
            secret_key=self.s3_secret_key,
            virtual_host=self.s3_virtual_host,
        )

    @property
    def risks(self) -> list[str]:
        found = super().risks
        if self.tls is not None and self.transport == "nixl":
            found.append("TLS does not cover NIXL, KV travels in the clear: set transport to grpc if others can listen")
        if self.s3_endpoint.startswith("http://") and not is_loopback(urlsplit(self.s3_endpoint).hostname or ""):
            found.append("KV travels to s3_endpoint in the clear: set it to https:// if others can listen")
        return found
