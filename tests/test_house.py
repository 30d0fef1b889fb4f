"""The house itself: what is light stays light, the pictures are true, the scripts are sound."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import fairlead
from fairlead.constitution.yaml import read_yaml

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "fairlead"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# modules that may import torch or transformers when they are imported; all others must not
HEAVY = re.compile(
    r"fairlead\.(engine(\..*)?|apprentice\.pretrain|models\.local|stack\.stages\.(sft|dpo|train)"
    r"|models\.adapted|judges\.(reward_model|reward_ensemble)|methods\.(adapters|losses_reward|process|reward|reward_(evaluate|members)|warm)"
    r"|methods\.(advantages|kl_estimators|losses_policy|shaping)"
    r"|methods\.(experience|fitting|gather|journal|learner|policy|policy_terms|reading|rewards|rollouts(_vllm.*)?|episodes)"
    r"|methods\.(balance|coupled|density|drift|loop|losses|losses_unpaired|neftune|pairs|sft|preference|unpaired|evaluate|kl|reference"
    r"|optimiser|resume|rows))"
)


def _modules() -> list[str]:
    return sorted(m.name for m in pkgutil.walk_packages([str(SRC)], "fairlead.", onerror=lambda _: None))


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


def test_everything_light_imports_without_torch() -> None:
    light = [name for name in _modules() if not HEAVY.fullmatch(name) and not name.endswith("__main__")]
    assert len(light) > 20
    blocked = (
        "import importlib, sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers', 'peft', 'tokenizers', 'safetensors'):\n"
        "            raise ModuleNotFoundError(f'{name} is not installed', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    done = _python(f"{blocked}for name in {light!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_importing_fairlead_imports_next_to_nothing() -> None:
    done = _python("import sys; before = set(sys.modules); import fairlead; print(len(set(sys.modules) - before))")
    assert int(done.stdout) <= 3, done.stderr


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    heavy = "('torch', 'transformers', 'scipy', 'pyarrow', 'openai', 'anthropic')"
    done = _python(
        "import sys\nfrom fairlead.cli.main import main\nmain(['constitution', 'check', 'hhh', '--json'])\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    assert done.stderr.strip() == "[]", done.stderr


def test_the_picture_of_the_house_is_true() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    drawn = set(re.findall(r"^  ([a-z_]+(?:/|\.py))\s", page, flags=re.MULTILINE))
    folders = {f"{p.name}/" for p in SRC.iterdir() if p.is_dir() and p.name != "__pycache__"}
    built = folders | {p.name for p in SRC.glob("*.py") if not p.name.startswith("__")}
    assert drawn == built


def test_every_room_has_its_place_in_the_import_contract() -> None:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    layers = " ".join(contracts[0]["layers"])
    placed = set(re.findall(r"[a-z_]+", layers))
    built = {p.stem for p in SRC.iterdir() if p.name != "__pycache__" and (p.is_dir() or p.suffix == ".py")} - {
        "__init__"
    }
    assert contracts[0]["exhaustive"] is True
    assert placed == built
    for contract in contracts[1:3]:  # engine and apprentice: nothing is forgotten on their lists
        source = contract["source_modules"][0].removeprefix("fairlead.")
        allowed = {"engine": {"engine"}, "apprentice": {"apprentice", "engine", "exchange", "errors"}}[source]
        assert {m.removeprefix("fairlead.") for m in contract["forbidden_modules"]} == built - allowed


def test_the_import_contracts_hold() -> None:
    """What `make lint` asks, so that a wrong import fails the tests too."""
    pytest.importorskip("importlinter")
    done = _python("import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))")
    assert done.returncode == 0, done.stdout
    kept = re.search(r"Contracts: (\d+) kept, 0 broken", done.stdout)
    assert kept and int(kept[1]) == len(PROJECT["tool"]["importlinter"]["contracts"])


def test_detectors_that_audit_the_guard_share_no_code_with_it() -> None:
    """Told by the imports themselves, over any number of steps; the contract of import-linter says the same."""
    audit = {f"fairlead.judges.{name}" for name in ("secrets", "rules", "verifiers", "gold", "voice")}
    seen: set[str] = set()
    waiting = [name for name in _modules() if name.startswith("fairlead.guard")]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += _imported(name)
    assert {"fairlead.guard.checks.told", "fairlead.judges.critic"} <= seen
    assert not seen & audit
    contract = next(
        c for c in PROJECT["tool"]["importlinter"]["contracts"][1:] if c["source_modules"] == ["fairlead.guard"]
    )
    assert set(contract["forbidden_modules"]) == audit


def _imported(name: str) -> list[str]:
    """The modules of the house that a module imports, at its head or inside."""
    place = SRC.parent / name.replace(".", "/")
    tree = ast.parse(
        (place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py").read_text()
    )
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [item.name for item in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{item.name}" for item in node.names)]
    built = set(_modules())
    return [item for item in found if item in built]


def test_files_stay_readable() -> None:
    long = {str(p.relative_to(ROOT)): n for p in SRC.rglob("*.py") if (n := len(p.read_text().splitlines())) > 450}
    assert not long, f"split these, by what they do: {long}"


def test_what_the_package_carries_is_in_the_tree_that_is_packed() -> None:
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["src/fairlead"]
    assert (SRC / "py.typed").exists()
    for pattern in ("constitution/packs/*.yaml", "constitution/prompts/*.md", "stack/recipes/*.yaml"):
        assert list(SRC.glob(pattern)), pattern
    ignored = (ROOT / ".gitignore").read_text().split()
    assert not {"*.safetensors", "*.json", "*.md", "*.yaml", "runs", "runs/"} & set(ignored)  # hatchling heeds it


def test_the_wheel_carries_what_the_package_reads(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is missing: it builds the wheel (pip install hatchling)")
    done = _python(f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 12_000_000, "the base model may take 8 MB"
    packed = set(zipfile.ZipFile(wheel).namelist())
    read = {p for p in SRC.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    missing = {str(p.relative_to(SRC.parent)) for p in read} - packed
    assert not missing
    assert any(name.endswith("entry_points.txt") for name in packed)


def test_the_package_says_what_it_needs() -> None:
    project = PROJECT["project"]
    assert project["scripts"] == {"fairlead": "fairlead.cli.main:main"}
    assert project["requires-python"] == ">=3.11"
    assert set(project["optional-dependencies"]) == {
        "train", "hub", "guard", "presidio", "bedrock", "vertex", "report", "history", "cluster", "inspect", "bench", "dev"
    }  # fmt: skip
    assert "torch>=2.11,<2.14" in project["optional-dependencies"]["train"]
    core = " ".join(project["dependencies"])
    assert not re.search(r"torch|transformers|litellm|inspect|pyyaml", core, flags=re.IGNORECASE)
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|a\d+|b\d+|rc\d+)?", fairlead.__version__)


@pytest.mark.parametrize("target", ["align", "test", "test-full", "live", "lint", "bench", "bench-trl", "docs"])
def test_make_targets_parse(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_installation_names_a_torch_index_only_where_one_is_given() -> None:
    def plan(*more: str) -> str:
        command = ["make", "-n", "-W", "pyproject.toml", "align", *more]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "pip install -q -e '.[train,report,guard,dev]'" in plan()
    assert '[ -n "" ]' in plan()
    assert '--index-url "file:///wheels"' in plan("TORCH_INDEX=file:///wheels")
    assert ".venv/bin/fairlead align --seed 1" in plan("ARGS=--seed 1")


def test_continuous_integration_calls_the_same_script() -> None:
    script = ROOT / ".ci" / "run"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert script.stat().st_mode & 0o111
    text = script.read_text()
    assert "pip install" not in text  # the Makefile installs
    jobs = read_yaml(ROOT / ".github" / "workflows" / "ci.yml").data["jobs"]
    assert [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step] == ["bash .ci/run"]


@pytest.mark.parametrize(("lint", "test", "code"), [(0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)])
def test_the_script_fails_where_a_step_fails_and_runs_both(tmp_path: Path, lint: int, test: int, code: int) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
    (tmp_path / "Makefile").write_text(f"lint:\n\t@echo linted; exit {lint}\ntest:\n\t@echo tested; exit {test}\n")
    done = subprocess.run(["bash", str(tmp_path / ".ci" / "run")], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == code
    assert "linted" in done.stdout
    assert "tested" in done.stdout
