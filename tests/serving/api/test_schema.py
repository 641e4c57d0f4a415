"""schemathesis against a real server: every operation of the OpenAPI document, answers as documented, no server errors."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fault_server import Served, environment, served

EXAMPLES = 15  # of each operation


# Which sizes a quote takes is a matter of the model, which no schema can say.
SETTINGS = """
[parameters]
model = "double"
version = "1"

[[operations]]
include-path-regex = "quote$"
checks.positive_data_acceptance.enabled = false
"""


def schemathesis(server: Served, folder: Path, examples: int) -> int:
    """Run all checks with a model that is served; returns how many requests were sent."""
    tool = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or shutil.which("schemathesis")
    if tool is None:
        pytest.skip("schemathesis is not installed; it is in the extra `test`")
    settings = folder / "schemathesis.toml"
    settings.write_text(SETTINGS)
    ended = subprocess.run(
        [
            tool, "--config-file", str(settings), "run", f"http://127.0.0.1:{server.port}/openapi.json", "--no-color",
            f"--max-examples={examples}", "--seed=1", "--request-timeout=30", "--generation-database=none",
        ],
        env=environment(), cwd=folder, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-6000:]
    found = re.search(r"(\d+) generated, (\d+) passed", ended.stdout)
    assert found is not None and found[1] == found[2], ended.stdout[-2000:]
    return int(found[1])


@pytest.mark.slow
def test_the_server_is_as_its_document_says(tmp_path: Path) -> None:
    with served(tmp_path, {"double": "toy_models", "wide": "toy_models"}) as server:
        assert schemathesis(server, tmp_path, EXAMPLES) > 10 * EXAMPLES
        # Loading and unloading it were among the operations.
        assert server.ask("POST", "/v2/repository/models/double/load")[0] == 200
        assert server.infer("double", 3.0)[0] == 200
        seen = server.metrics()
        assert seen["strait_requests_offered"] == seen["strait_requests_total"], "each ended once"
        assert server.stop() == 0
