"""Where staged blocks are read from."""

from dataclasses import dataclass

from armature.transfer.region import Region
from armature.v1.worker_pb2 import StagingInfo


@dataclass(frozen=True, slots=True)
class Source:
    """Another worker's pool, and the staging in it that a reader may read."""

    address: str
    """gRPC target of the worker."""
    staging_id: str
    region: Region
    nixl_metadata: bytes = b""
    """Empty: this worker can't be read by NIXL."""

    @classmethod
    def of(cls, address: str, info: StagingInfo) -> "Source":
        region = Region(
            base_address=info.base_address,
            block_bytes=info.block_bytes,
            num_blocks=info.num_blocks,
            memory_kind=info.memory_kind,
            device_id=info.device_id,
        )
        return cls(address, info.staging_id, region, info.nixl_metadata)
