"""Files that come from anyone: no road leads from them to code that runs."""

import ast
import pickle
from pathlib import Path

import pytest
import torch

from asymcl.cli.predict import predict_command
from asymcl.data.datasets import fashion_mnist
from asymcl.infer.model import TrainedModel
from asymcl.models import small_encoder

ROOT = Path(__file__).parents[2]
UNPICKLERS = {"pickle", "joblib", "shelve", "marshal", "dill", "cloudpickle"}


@pytest.mark.parametrize("path", sorted((ROOT / "asymcl").rglob("*.py")), ids=str)
def test_no_module_unpickles(path):
    safe = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and [n.name for n in node.names] == ["UnpicklingError"]:
            continue  # an error to catch
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {
                (getattr(node, "module", None) or "").split(".")[0]
            }
            assert not names & UNPICKLERS, f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in ("load_learner", "read_pickle"), f"line {node.lineno}"
            name, value = safe.get(ast.unparse(node.func), (None, None))
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            assert given.get(name) is value, f"line {node.lineno}"


class Attack:
    "Writes a file when it is unpickled"

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (Path(self.path), "attacked")


@pytest.fixture
def model(tmp_path):
    data = fashion_mnist(train_total=100)
    mean, std = data.channel_stats()
    TrainedModel(
        encoder=small_encoder(), head=torch.nn.Linear(256, 2), classes=data.classes,
        image_shape=(1, 28, 28), mean=mean, std=std,
    ).save(tmp_path / "model.safetensors")  # fmt: skip
    return tmp_path / "model.safetensors"


@pytest.fixture
def predict(capsys):
    "Runs asymcl-predict: exit code, standard output and standard error"

    def run(model, image):
        try:
            code = predict_command([str(model), str(image)])
        except SystemExit as ending:
            code = ending.code
        return code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize("way", ["pickle", "torch.save"])
def test_a_planted_pickle_is_rejected_and_not_run(model, predict, tmp_path, way):
    attacked = tmp_path / "attacked"
    if way == "pickle":
        model.write_bytes(pickle.dumps(Attack(attacked)))
    else:
        torch.save(Attack(attacked), model)
    code, _, errors = predict(model, ROOT / "nbs" / "favicon.svg")
    assert code == 2 and "not a model that can be used (SafetensorError" in errors
    assert errors.count("\n") == 1, errors
    assert not attacked.exists()
    if way == "pickle":
        pickle.loads(model.read_bytes())
        assert attacked.exists()  # the attack itself works


def test_the_same_model_without_the_attack_answers(model, predict, tmp_path):
    from PIL import Image

    Image.new("L", (28, 28), 128).save(tmp_path / "grey.png")
    code, rows, errors = predict(model, tmp_path / "grey.png")
    assert code == 0 and len(rows.splitlines()) == 2, errors
