"""What overlays may add: a bucket below the tiers, and mutual TLS without a mesh."""

import os
from pathlib import Path

from services.kv_offload.settings import KvOffloadSettings
from tests.support.containers import ROOT, SERVICES, Manifest, built, check_manifest, known_variables

KUSTOMIZATION = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [{base}]
components: [{component}]
"""


def with_component(folder: Path, component: str) -> dict[str, Manifest]:
    """The services' workloads of the base and this component, by name."""
    paths = {"base": ROOT / "k8s" / "base", "component": ROOT / "k8s" / "components" / component}
    relative = {name: os.path.relpath(path, folder.resolve()) for name, path in paths.items()}
    (folder / "kustomization.yaml").write_text(KUSTOMIZATION.format(**relative))
    found = {
        one["metadata"]["name"]: one for one in built(folder) if one["kind"] in ("ConfigMap", "Deployment", "DaemonSet")
    }
    for manifest in found.values():
        check_manifest(manifest)
    return found


def service_of(workload: Manifest) -> Manifest:
    (service,) = workload["spec"]["template"]["spec"]["containers"]
    return service


def test_with_a_bucket_every_kv_offload_has_its_settings_and_may_have_keys(tmp_path: Path) -> None:
    env = {one["name"]: one for one in service_of(with_component(tmp_path, "s3")["kv-offload"])["env"]}
    assert env.keys() <= known_variables("kv-offload")
    told = {name.removeprefix("ARMATURE_").lower(): one["value"] for name, one in env.items() if "value" in one}
    bucket = KvOffloadSettings(remote=told["remote"], remote_bytes=int(told["remote_bytes"])).bucket
    assert bucket is not None and bucket.name
    for key in ("ARMATURE_S3_ACCESS_KEY", "ARMATURE_S3_SECRET_KEY"):
        assert env[key]["valueFrom"]["secretKeyRef"]["optional"], "a role of the pods will do"


def test_with_mutual_tls_everybody_has_certificates_and_no_probe_comes_without(tmp_path: Path) -> None:
    found = with_component(tmp_path, "mutual-tls")
    (config,) = [one["data"] for one in found.values() if one["kind"] == "ConfigMap"]
    files = {config[f"ARMATURE_TLS_{key}"] for key in ("CERT", "KEY", "CA")}
    for name in SERVICES:
        pod, service = found[name]["spec"]["template"]["spec"], service_of(found[name])
        assert {source["configMapRef"]["name"] for source in service["envFrom"]} <= found.keys()
        mounted = {mount["name"]: mount["mountPath"] for mount in service["volumeMounts"]}
        (secret,) = [one for one in pod["volumes"] if "secret" in one]
        assert {Path(file).parent for file in files} == {Path(mounted[secret["name"]])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            (how,) = {"grpc", "httpGet", "exec", "tcpSocket"} & service[probe].keys()
            assert how != "grpc", "the kubelet has no certificate"
