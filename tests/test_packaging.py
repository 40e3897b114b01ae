"""What a fresh machine installs: declared, pinned, complete, well explained."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SETUP = ROOT / "requirements" / "setup.sh"
# What the import name does not tell.
DISTRIBUTION_OF = {
    "ruamel": "ruamel-yaml",
    "sklearn": "scikit-learn",
    "sed_scores_eval": "sed-scores-eval-np2",
    "yaml": "pyyaml",
}
# Used where they are there; their absence is said, or made up for.
OPTIONAL = {"mamba-ssm", "onnxruntime", "torchcodec"}
OPTIONAL |= {"sebbs", "sed-scores-eval-np2"}
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


def declared(*extras):
    """Return the requirements of the installed package, with extras."""
    found = map(Requirement, metadata.requires("ssast_lobes"))
    needs = {
        canonicalize_name(need.name): need
        for need in found
        if not need.marker
        or any(need.marker.evaluate({"extra": extra}) for extra in extras)
    }
    own = needs.pop("ssast-lobes", None)
    return {**declared(*own.extras), **needs} if own else needs


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
    for name, need in declared("test", "docs").items():
        assert name in pins
        assert need.specifier.contains(pins[name]), need
    # torch needs it at run time, and `pip install -e` at set-up.
    assert "setuptools" in pins


def test_oldest_is_what_is_declared():
    pins = pinned("oldest.txt", "3.10")
    for name, need in declared().items():
        (oldest,) = (s for s in need.specifier if s.operator == ">=")
        assert pins[name] == oldest.version, need


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
    assert needed - OPTIONAL <= set(declared())


def files(folder, pattern="*"):
    """Files below a folder, relative to it, without what runs leave there."""
    ignored = {"results", "__pycache__"}
    return {
        path.relative_to(folder)
        for path in folder.rglob(pattern)
        if path.is_file() and not ignored.intersection(path.parts)
    }


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A source tree whose recipes have been run."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("ssast_lobes", "hparams", "recipes"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True)
    heads = folder / "ssast_lobes" / "pretrained" / "stand_in" / "heads"
    heads.mkdir(parents=True)
    for path in (heads.parent / "README.md", heads / "a.safetensors"):
        path.write_text("of the bundled model")
    task = folder / "recipes" / "CustomData" / "pretrain"
    for place in ("results/run/1", "__pycache__"):
        (task / place).mkdir(parents=True, exist_ok=True)
        for name in ("README.md", "train.py", "x.cpython-311.pyc"):
            (task / place / name).write_text("of a run")
    return folder


def build_wheel(source, folder):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        + ["--no-build-isolation", "--wheel-dir", folder, source],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(source, tmp_path_factory):
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_the_whole_package(source, wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    code = files(source / "ssast_lobes", "*.py")
    models = files(source / "ssast_lobes" / "pretrained")
    presets = files(source / "hparams", "*.yaml")
    recipes = files(source / "recipes")
    assert {f"ssast_lobes/{path}" for path in code} <= packed
    assert {f"ssast_lobes/pretrained/{path}" for path in models} <= packed
    assert {f"ssast_lobes/hparams/{path}" for path in presets} <= packed
    assert {name for name in packed if "/recipes/" in name} == {
        f"ssast_lobes/recipes/{path}" for path in recipes
    }
    assert "ssast_lobes/version.txt" in packed
    assert any(name.endswith("LICENSE") for name in packed)


@pytest.mark.slow
def test_wheel_of_a_source_archive_is_the_same(source, wheel, tmp_path):
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "sdist"]
        + ["--dist-dir", tmp_path],
        cwd=source,
        check=True,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    again = build_wheel(archive, tmp_path)
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        names = set(first.namelist())
        assert set(second.namelist()) == names
        for name in names:
            # But for the list of sums.
            if not name.endswith("/RECORD"):
                assert second.read(name) == first.read(name), name


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """The commands of an environment with the wheel, far from the checkout.

    It sees the other packages of this one, to download none.
    """
    venv = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", venv], check=True
    )
    purelib = sysconfig.get_path(
        "purelib", vars={"base": str(venv), "platbase": str(venv)}
    )
    # A .pth in a folder that a .pth names is not read: no editable install.
    seen = {sysconfig.get_path(key) for key in ("purelib", "platlib")}
    Path(purelib, "others.pth").write_text("\n".join(seen))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", venv / "bin" / "python"]
        + ["install", "--quiet", "--no-deps", "--ignore-installed", wheel],
        check=True,
    )
    return venv / "bin"


def run_installed(installed, folder, *words):
    """Run a command of that environment; give what it prints."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    path = f"{installed}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [installed / words[0], *map(str, words[1:])],
        cwd=folder,
        env={**environment, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (
        f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


# Imports each script, without running it.
IMPORT_SCRIPTS = """
import runpy, sys, ssast_lobes
from pathlib import Path
print(ssast_lobes.__file__)
for path in sorted(Path("recipes").rglob("*.py")):
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="imported")
    del sys.path[0]
    # Modules of recipes may have one name.
    for other in path.parent.glob("*.py"):
        sys.modules.pop(other.stem, None)
    print(path)
"""


@pytest.mark.slow
def test_recipes_of_an_installed_wheel_run(installed, source, tones, tmp_path):
    def run(folder, *words):
        return run_installed(installed, folder, *words)

    listed, _, _ = run(tmp_path, "ssast-lobes", "recipes").partition("\n\n")
    names = {path.parts[0] for path in files(source / "recipes")}
    assert {line.split()[0] for line in listed.splitlines()} == names
    for name in names:
        run(tmp_path, "ssast-lobes", "recipes", name, tmp_path)
    for folder in ("recipes", "hparams"):
        assert files(tmp_path / folder) == files(source / folder)
        for path in files(source / folder):
            copy, own = tmp_path / folder / path, source / folder / path
            assert copy.read_bytes() == own.read_bytes()

    package, *scripts = run(
        tmp_path, "python", "-c", IMPORT_SCRIPTS
    ).splitlines()
    assert Path(package).is_relative_to(installed.parent)
    assert scripts == [
        f"recipes/{path}" for path in sorted(files(source / "recipes", "*.py"))
    ]

    recipe = tmp_path / "recipes" / "CustomData"
    small = "--crop_seconds 0.6 --batch_size 8 --number_of_epochs 1".split()
    small += "--num_workers 0 --noprogressbar".split()
    run(
        *(recipe / "pretrain", "python", "train.py", "hparams/pretrain.yaml"),
        *("--audio", tones.manifest, "--model_size", "micro", *small),
        *("--objective", "m2d"),
    )
    run(
        *(recipe / "classify", "python", "train.py", "hparams/classify.yaml"),
        *("--manifest", tones.manifest, *small, "--source"),
        "../pretrain/results/pretrain_m2d/export",
    )
    results = recipe / "classify" / "results"
    (result,) = results.rglob("test_result.json")
    assert "accuracy" in json.loads(result.read_text())["metrics"]


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


@pytest.mark.slow
def test_a_folder_of_the_package_name_hides_nothing(tmp_path):
    """As a clone does, seen from the folder that it lies in."""
    (tmp_path / "ssast_lobes" / "recipes").mkdir(parents=True)
    code = "from ssast_lobes import MSPM; print(MSPM.__name__)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "MSPM\n"
