"""The committed stubs are what `make proto` makes of the contracts."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_committed_stubs_equal_what_the_contracts_generate(tmp_path: Path) -> None:
    protos = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "protos" / "armature").rglob("*.proto"))]
    arguments = ["--proto_path", "protos", "--python_out", str(tmp_path), "--grpc_python_out", str(tmp_path)]
    plugins = Path(sys.executable).parent
    arguments += [f"--plugin={plugins / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    arguments += ["--mypy_out", f"quiet:{tmp_path}", "--mypy_grpc_out", f"quiet:{tmp_path}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *arguments, *protos]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

    made = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*_pb2*")}
    committed = {
        str(path.relative_to(ROOT / "libs")): path.read_text()
        for path in (ROOT / "libs").rglob("*_pb2*")
        if path.suffix in {".py", ".pyi"}
    }
    assert made.keys() == committed.keys()
    differing = [name for name, text in made.items() if committed[name] != text]
    assert not differing, f"run `make proto` and commit: {differing}"
