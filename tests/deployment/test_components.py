"""What overlays may add: the component that puts tier G4 into a bucket."""

import os
from pathlib import Path

from services.kv_offload.settings import KvOffloadSettings
from tests.support.containers import ROOT, built, check_manifest, known_variables

KUSTOMIZATION = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [{base}]
components: [{component}]
"""


def test_with_a_bucket_every_kv_offload_has_its_settings_and_may_have_keys(tmp_path: Path) -> None:
    base, component = (os.path.relpath(ROOT / "k8s" / name, tmp_path.resolve()) for name in ("base", "components/s3"))
    (tmp_path / "kustomization.yaml").write_text(KUSTOMIZATION.format(base=base, component=component))
    (manifest,) = [one for one in built(tmp_path) if one["kind"] == "DaemonSet"]
    check_manifest(manifest)
    (service,) = manifest["spec"]["template"]["spec"]["containers"]
    env = {one["name"]: one for one in service["env"]}
    assert env.keys() <= known_variables("kv-offload")
    told = {name.removeprefix("ARMATURE_").lower(): one["value"] for name, one in env.items() if "value" in one}
    bucket = KvOffloadSettings(remote=told["remote"], remote_bytes=int(told["remote_bytes"])).bucket
    assert bucket is not None and bucket.name
    for key in ("ARMATURE_S3_ACCESS_KEY", "ARMATURE_S3_SECRET_KEY"):
        assert env[key]["valueFrom"]["secretKeyRef"]["optional"], "a role of the pods will do"
