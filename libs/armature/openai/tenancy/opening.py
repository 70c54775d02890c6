"""Whose requests a gateway takes, and what it counts of them."""

from pathlib import Path
from typing import TypeVar

from armature.openai.serving.core import ServingCore
from armature.openai.tenancy.admin import Admin
from armature.openai.tenancy.key_etcd import EtcdKeys
from armature.openai.tenancy.key_file import KeyFile
from armature.openai.tenancy.keys import digest_of
from armature.openai.tenancy.quotas import Quotas
from armature.openai.tenancy.usage import UsageMeter
from armature.runtime.redis_client import RedisClient
from armature.runtime.runtime import Runtime
from armature.runtime.settings import CommonSettings

S = TypeVar("S", bound=CommonSettings)

IN_ETCD = "etcd"


async def open_tenancy(
    core: ServingCore,
    runtime: Runtime[S],
    redis: RedisClient | None,
    *,
    keys: str,
    admin_key: str,
    limits_timeout_s: float,
) -> Admin:
    """Keys, limits and usage of a gateway's callers, and the endpoints that administer them.

    Raises:
        StartError: the keys can't be read.
    """
    settings, tasks, doorkeeper = runtime.settings, runtime.tasks, core.doorkeeper
    store: KeyFile | EtcdKeys | None = None
    if keys == IN_ETCD:
        store = EtcdKeys(runtime.etcd, settings.namespace)
        tasks.create_task(store.follow(doorkeeper), name="API keys")
        await store.loaded(settings.etcd_timeout_s)
    elif keys:
        store = KeyFile(Path(keys))
        doorkeeper.table = store.read()
        tasks.create_task(store.follow(doorkeeper), name="API keys")
    doorkeeper.admin_digest = digest_of(admin_key) if admin_key else ""
    prefix = f"armature:{settings.namespace}"
    core.quotas = Quotas(runtime.member_id, f"{prefix}:quota:", redis, timeout_s=limits_timeout_s)
    tasks.create_task(core.quotas.run(), name="quotas")
    meter = UsageMeter(runtime.member_id, f"{prefix}:usage:", redis)
    core.on_end.append(meter.ended)
    core.texts.on_embedded.append(meter.embedded)
    tasks.create_task(meter.run(), name="usage")
    return Admin(doorkeeper, meter, store)
