"""Hands the release facts of settings.ini to setuptools; everything else stands in pyproject.toml."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
facts = config["DEFAULT"]


def lines(key):
    "The values of a fact that stands on several lines"
    return [line.strip() for line in facts[key].splitlines() if line.strip()]


setup(
    author=facts["author"],
    license=facts["license"],
    python_requires=f">={facts['min_python']}",
    keywords=facts["keywords"],
    classifiers=lines("classifiers"),
    install_requires=lines("requirements"),
    extras_require={
        "tune": lines("requirements_tune"),
        "onnx": lines("requirements_onnx"),
        "timm": lines("requirements_timm"),
        "explain": lines("requirements_explain"),
        "hub": lines("requirements_hub"),
        "demo": lines("requirements_demo"),
        "dev": [
            *lines("requirements_dev"),
            *lines("requirements_tune"),
            *lines("requirements_onnx"),
            *lines("requirements_timm"),
            *lines("requirements_explain"),
            *lines("requirements_hub"),
            *lines("requirements_demo"),
        ],
    },
    entry_points={
        "console_scripts": lines("console_scripts"),
        "nbdev": ["asymcl = asymcl._modidx:d"],
    },
)
