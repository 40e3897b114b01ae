"""What a fresh machine installs: declared, pinned, complete, well explained."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SETUP = ROOT / "requirements" / "setup.sh"
# What the import name does not tell.
DISTRIBUTION_OF = {"yaml": "pyyaml"}
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def declared(extra=""):
    """Return the requirements of the installed package, with one extra."""
    found = map(Requirement, metadata.requires("ssast_lobes"))
    return {
        canonicalize_name(need.name): need
        for need in found
        if not need.marker or need.marker.evaluate({"extra": extra})
    }


def pinned(name, python):
    """Return the versions a requirements file pins for one Python on Linux."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    pins = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        need = Requirement(line)
        if need.marker and not need.marker.evaluate(environment):
            continue
        (exact,) = need.specifier
        assert exact.operator == "==", line
        assert need.name not in pins, line
        pins[canonicalize_name(need.name)] = exact.version
    return pins


def test_version_is_that_of_the_installed_package():
    import ssast_lobes

    assert metadata.version("ssast_lobes") == ssast_lobes.__version__


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_satisfy_what_is_declared(python):
    pins = pinned("pinned.txt", python)
    for name, need in declared("test").items():
        assert name in pins
        assert need.specifier.contains(pins[name]), need
    # torch needs it at run time, and `pip install -e` at set-up.
    assert "setuptools" in pins


def test_floor_is_what_is_declared():
    pins = pinned("floor.txt", "3.10")
    for name, need in declared().items():
        (floor,) = (s for s in need.specifier if s.operator == ">=")
        assert pins[name] == floor.version, need


def test_running_versions_are_declared():
    for name, need in declared("test").items():
        version = metadata.version(name).split("+")[0]
        assert need.specifier.contains(version), f"{need} but {version}"


def imports_of(folder):
    """Return the top-level names that the modules of a folder import."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"ssast_lobes"}


def test_imports_of_the_package_are_declared():
    needed = {
        DISTRIBUTION_OF.get(name, canonicalize_name(name))
        for name in imports_of(ROOT / "ssast_lobes")
    }
    assert needed <= set(declared())


def test_wheel_holds_the_whole_package(tmp_path):
    source = tmp_path / "source"
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    for name in ("ssast_lobes", "hparams"):
        shutil.copytree(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        + ["--no-build-isolation", "--wheel-dir", tmp_path, source],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    code = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "ssast_lobes").rglob("*.py")
    }
    fragments = {
        f"ssast_lobes/{path.relative_to(ROOT)}"
        for path in (ROOT / "hparams").rglob("*.yaml")
    }
    assert code | fragments | {"ssast_lobes/version.txt"} <= packed
    assert any(name.endswith("LICENSE") for name in packed)


def test_command_is_installed():
    (command,) = metadata.entry_points(
        group="console_scripts", name="ssast-lobes"
    )
    assert callable(command.load())


def test_make_lists_its_targets():
    shown = subprocess.run(
        ["make", "--no-print-directory"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    listed = re.findall(r"^make (\S+)", shown, re.MULTILINE)
    rules = re.findall(
        r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert listed == rules


def stand_in(folder, name, version, missing="nothing"):
    """Write an interpreter of another version, or one without a module."""
    path = folder / name
    path.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.version_info = ({version.replace('.', ', ')}, 0, 'final', 0)\n"
        f"sys.modules[{missing!r}] = None\n"
        "exec(sys.argv[2])\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("version", "missing", "message"),
    [
        ("3.9", "nothing", "needs Python 3.10 to 3.14"),
        ("3.15", "nothing", "needs Python 3.10 to 3.14"),
        ("3.11", "ensurepip", "apt install python3-venv"),
    ],
)
def test_set_up_explains_itself(tmp_path, version, missing, message):
    python = stand_in(tmp_path, "python", version, missing)
    venv = tmp_path / "venv"
    result = subprocess.run(
        ["sh", SETUP, venv, "requirements/pinned.txt", "3.14"]
        + ["no-python", python],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert message in result.stderr
    assert not venv.exists()
