"""`asymcl-demo` in headless Chromium: an image is dropped and answered, and nothing outside this machine is asked for."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("gradio", reason="gradio is not installed")
BROWSER = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not BROWSER, reason="the page is tested in Chromium, not installed"),
]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
PATIENCE = 120_000  # milliseconds
# The command, noting every address that its process connects to or looks up
SERVER = """
import sys

def note(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
    elif event == "socket.getaddrinfo":
        address = arguments[0]
    else:
        return
    with open("connections.txt", "a") as file:
        print(address, file=file)

sys.addaudithook(note)
from asymcl.cli.demo import demo_command
sys.exit(demo_command(["model.safetensors", "--recall", "0.9", "--images", "train"]))
"""


def write_model(folder):
    "A model of dark and bright images that errs sometimes, with three training images as files"
    from asymcl.infer.model import Gallery, TrainedModel
    from asymcl.models import encode, small_encoder
    from asymcl.views import normalized

    torch.manual_seed(0)
    (folder / "train").mkdir()
    shades = torch.tensor([20, 120, 230], dtype=torch.uint8)
    images = shades[:, None, None, None].expand(3, 1, 28, 28)
    names = [f"{shade}.png" for shade in shades.tolist()]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image[0].numpy()).save(folder / "train" / name)
    stats = torch.tensor([0.5]), torch.tensor([0.3])
    encoder = small_encoder()
    features = encode(encoder, normalized(images, *stats))
    head = torch.nn.Linear(256, 2)
    direction = features[2] - features[0]
    head.weight.data = torch.stack([-direction, direction]) * 4 / direction.square().sum()
    middle = (features[0] + features[2]) / 2
    head.bias.data = -head.weight.data @ middle
    logits, labels = torch.randn(200, 2), torch.arange(200) % 2
    logits[:, 1] += 3 * labels - 1.5
    TrainedModel(
        encoder=encoder, head=head, classes=("dark", "bright"), image_shape=(1, 28, 28),
        mean=stats[0], std=stats[1], valid_logits=logits, valid_labels=labels,
        gallery=Gallery(features, torch.tensor([0, 0, 1]), names),
        about={"train_counts": [90, 10]},
    ).save(folder / "model.safetensors")  # fmt: skip


@pytest.fixture
def server(tmp_path):
    "Address of the page, and the folder of its process"
    write_model(tmp_path)
    for name, shade in (("bright", 225), ("dark", 15)):
        Image.new("L", (40, 40), shade).save(tmp_path / f"{name}.png")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=tmp_path,
        env=os.environ | dict(TMPDIR=str(tmp_path), PYTHONWARNINGS="ignore"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        address = re.match(r"http://127\.0\.0\.1:\d+", line)
        assert address, line + process.stderr.read()
        yield address[0], tmp_path
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.splitlines()[-1] == "asymcl-demo: stopped", errors
    assert not list(tmp_path.rglob("bright*.png"))[1:]  # uploaded images are gone


def test_an_image_is_answered_and_nothing_leaves_this_machine(server):
    address, folder = server
    asked, problems = [], []
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = chromium.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        decision = page.locator("#decision")
        for name in ("bright", "dark"):
            page.set_input_files("input[type=file]", folder / f"{name}.png")
            playwright.expect(decision).to_contain_text(f"Decision: {name}", timeout=PATIENCE)
            if name == "bright":
                page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
        playwright.expect(page.get_by_text("for a recall of 0.9 with confidence")).to_be_visible()
        playwright.expect(page.get_by_text("dark, cosine 1.00, 20.png").first).to_be_visible()
        playwright.expect(page.locator("img")).to_have_count(5)  # image, map, three neighbours
        playwright.expect(page.get_by_label("Share")).to_have_count(0)
        page.screenshot(path=folder / "page.png", full_page=True)
        chromium.close()
    outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert asked and not outside
    assert not problems
    connections = Path(folder / "connections.txt").read_text().splitlines()
    assert not [line for line in connections if "127.0.0.1" not in line and line != "localhost"]
