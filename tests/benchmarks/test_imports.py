"""A benchmark may import the project and other benchmarks. What tests and benchmarks share lies in
`benchmarks` or in `pallas_kernels.testing`.
"""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[2]


def test_benchmarks_import_no_tests():
    imported = {}
    for file in (ROOT / "benchmarks").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            else:
                continue
            imported |= {name.split(".")[0]: file.name for name in names}
    assert "jax" in imported and "tests" not in imported, imported
