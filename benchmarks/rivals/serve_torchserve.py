"""The simulated accelerator behind TorchServe: `serve_torchserve.py PORT WAIT_MILLISECONDS`.

It writes model archives, and becomes TorchServe, which loads this file into its workers. The
archives beyond the first two are for who asks, at the next port, that they be loaded.
"""

import importlib.util
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

ACCELERATOR: Any = None


def handle(data: list[dict[str, Any]], _context: Any) -> list[Any]:
    """Returns an answer for each request; called without any first, when the worker starts."""
    global ACCELERATOR  # noqa: PLW0603 - TorchServe wants a function of the module.
    if ACCELERATOR is None:
        from accelerator import Accelerator

        ACCELERATOR = Accelerator()
    if not data:
        return []
    bodies = [request.get("body") or request.get("data") for request in data]
    rows = [(json.loads(body) if isinstance(body, bytes | bytearray) else body) for body in bodies]
    x = np.array([row["instances"][0] for row in rows], "float32")
    return [{"predictions": [row.tolist()]} for row in ACCELERATOR.run(x)]


def write_archive(path: Path, name: str, version: int, wait: int) -> None:
    """Writes what `torch-model-archiver` would."""
    manifest = {
        "createdOn": "01/01/2026 00:00:00",
        "runtime": "python",
        "model": {
            "modelName": name,
            "handler": "serve_torchserve.py:handle",
            "modelVersion": f"{version}.0",
            "configFile": "model.yaml",
        },
        "archiverVersion": "0.12.0",
    }
    settings = f"minWorkers: 1\nmaxWorkers: 1\nbatchSize: 32\nmaxBatchDelay: {wait}\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("model.yaml", settings)
        archive.write(__file__, "serve_torchserve.py")


def main() -> None:
    port, wait = map(int, sys.argv[1:])
    folder = Path(tempfile.mkdtemp(dir=Path(os.environ["ACCELERATOR_COUNTS"]).parent))
    write_archive(folder / "other.mar", "other", 1, wait)
    for version in range(1, 12):
        write_archive(folder / f"m{version}.mar", "m", version, wait)
    addresses = zip(("inference", "management", "metrics"), range(port, port + 3), strict=True)
    lines = [f"{name}_address=http://127.0.0.1:{number}" for name, number in addresses]
    # Its gRPC would listen at ports of its own.
    lines += ["grpc_inference_port=0", "grpc_management_port=0"]
    lines += ["load_models=m1.mar,other.mar", ""]
    (folder / "config.properties").write_text("\n".join(lines))
    package = importlib.util.find_spec("ts")
    if package is None or package.origin is None:
        sys.exit("torchserve is not installed.")
    home = Path(package.origin).parents[1]
    paths = [str(Path(__file__).parent), os.environ["PYTHONPATH"]]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.chdir(folder)
    # As `torchserve --start` does, which would stay beside it.
    command = ["java", f"-Dmodel_server_home={home}", "-cp", f".:{home / 'ts/frontend'}/*"]
    command += ["org.pytorch.serve.ModelServer", "--python", sys.executable]
    command += ["-f", "config.properties", "-s", str(folder), "--disable-token-auth"]
    os.execvp("java", command)


if __name__ == "__main__":
    main()
