"""What a stranger gets: the wheel's metadata and contents, an import that stays light."""

import ast
import configparser
import email
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXTRAS = "tune", "onnx", "timm", "explain", "hub", "demo"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel built from the working tree, opened"
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = [n for n in tracked.stdout.split("\0") if n and (ROOT / n).is_file()]
    if tracked.returncode or not names:
        pytest.skip("not a git checkout")
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def settings():
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini")
    return config["DEFAULT"]


def dist_info(wheel, name):
    "Text of a file of the wheel's dist-info folder"
    return wheel.read(
        next(n for n in wheel.namelist() if n.endswith(f".dist-info/{name}"))
    ).decode()


def lines(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


def normal(requirement):
    return requirement.replace(" ", "").replace('"', "'").split(";")[0].lower()


def parts(requirement):
    "Name and the set of version bounds of a requirement"
    text = normal(requirement)
    start = next((i for i, c in enumerate(text) if c in "<>=!~"), len(text))
    return text[:start], frozenset(filter(None, text[start:].split(",")))


@pytest.mark.slow
def test_metadata_is_that_of_settings_and_pyproject(wheel, settings):
    metadata = email.message_from_string(dist_info(wheel, "METADATA"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Name"] == project["name"] == "asymcl"
    assert metadata["Summary"] == project["description"]
    assert metadata["Requires-Python"] == f">={settings['min_python']}"
    assert metadata["Author"] == settings["author"]
    assert metadata["Keywords"] == ",".join(k.strip() for k in settings["keywords"].split(","))
    assert settings["license"] in (metadata["License"], metadata["License-Expression"])
    assert metadata.get_all("Classifier") == lines(settings["classifiers"])
    urls = dict(u.split(", ") for u in metadata.get_all("Project-URL"))
    assert urls == project["urls"]
    assert metadata.get_payload().startswith("# asymcl")


@pytest.mark.slow
def test_requirements_and_extras(wheel, settings):
    required = email.message_from_string(dist_info(wheel, "METADATA")).get_all("Requires-Dist")
    plain = {parts(r) for r in required if "extra" not in r}
    extras = {
        name: {parts(r) for r in required if f"extra == '{name}'" in r.replace('"', "'")}
        for name in (*EXTRAS, "dev")
    }
    assert plain == {parts(r) for r in lines(settings["requirements"])}
    for name in EXTRAS:
        assert extras[name] == {parts(r) for r in lines(settings[f"requirements_{name}"])}
    optional = set().union(*(extras[name] for name in EXTRAS))
    assert extras["dev"] == {parts(r) for r in lines(settings["requirements_dev"])} | optional
    assert len(required) == len(plain) + sum(map(len, extras.values()))


@pytest.mark.slow
def test_version_lives_in_the_package_alone(wheel):
    namespace = {}
    exec((ROOT / "asymcl/__init__.py").read_text(), namespace)
    assert (
        email.message_from_string(dist_info(wheel, "METADATA"))["Version"]
        == namespace["__version__"]
    )
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.slow
def test_console_scripts(wheel, settings):
    entries = configparser.ConfigParser(delimiters=["="])
    entries.read_string(dist_info(wheel, "entry_points.txt"))
    assert [f"{k} = {v}" for k, v in entries["console_scripts"].items()] == lines(
        settings["console_scripts"]
    )


@pytest.mark.slow
def test_wheel_holds_modules_sample_and_licences(wheel):
    names = set(wheel.namelist())
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "asymcl").rglob("*.py")}
    sample = {p.relative_to(ROOT).as_posix() for p in (ROOT / "asymcl/sample").iterdir()}
    assert modules | sample | {"asymcl/weights/fashion_mnist_eight.safetensors"} <= names
    assert sum(wheel.getinfo(n).file_size for n in sample) <= 2.5e6
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not any(n.startswith(("tests", "nbs", "docs", "tools", "benchmarks")) for n in names)


def test_losses_import_neither_fastai_nor_torchvision():
    heavy = {"fastai", "torchvision", "sklearn", "matplotlib"}
    code = (
        f"import sys, asymcl.losses, asymcl.distributed; print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rooms_import_only_what_stands_below_them():
    "The contracts stand in pyproject.toml"
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_no_module_imports_a_private_name_of_another():
    for path in (ROOT / "asymcl").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        imported = [
            alias.name
            for node in nodes
            if isinstance(node, ast.ImportFrom) and (node.level or "asymcl" in (node.module or ""))
            for alias in node.names
        ]
        private = [n for n in imported if n.startswith("_") and n != "__version__"]
        assert not private, f"{path.relative_to(ROOT)} imports {private}"


def test_a_trained_model_needs_no_fastai():
    code = "import sys, asymcl.infer; print('fastai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
