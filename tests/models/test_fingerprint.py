"""Fingerprints: a base is its weights; copies, moves and touches are the same base, and other weights are not."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import make_model, save_adapter

from lowtax.common.errors import UserError
from lowtax.models.adapters import check_base, write_base
from lowtax.models.fingerprint import base_in, fingerprint, identity, record_base, text_fingerprint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", "qwen2")


def scaled(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] *= 1.5
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def test_copies_spellings_and_touches_have_one_fingerprint(model: Path, monkeypatch: pytest.MonkeyPatch):
    first = fingerprint(str(model))
    copy = shutil.copytree(model, model.with_name("copy"))
    os.utime(model / "model.safetensors", ns=(1, 1))
    os.utime(model / "config.json", ns=(1, 1))
    monkeypatch.chdir(model.parent)
    assert {fingerprint(ref) for ref in (str(model), str(copy), "model", "./copy", str(model / ".." / "model"))} == {
        first
    }
    assert identity("model") == identity(str(copy)) == f"sha256:{first}"


def test_what_decides_what_a_model_computes_changes_it(model: Path):
    seen = {fingerprint(str(model))}
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"transformers_version": "9", "use_cache": False}))
    assert fingerprint(str(model)) in seen
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    seen.add(fingerprint(str(model)))
    scaled(model)
    assert len(seen | {fingerprint(str(model))}) == 3


def test_the_hash_of_a_file_is_kept(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LOWTAX_HOME", str(tmp_path / "home"))
    first = fingerprint(str(model))
    stored = json.loads((tmp_path / "home" / "fingerprints.json").read_text())
    assert len(stored) == 1
    (tmp_path / "home" / "fingerprints.json").write_text(json.dumps(dict.fromkeys(stored, "kept")))
    assert fingerprint(str(model)) != first  # it is read from there
    (tmp_path / "home" / "fingerprints.json").write_text("damaged")
    assert fingerprint(str(model)) == first


def test_large_files_of_the_hub_are_known_by_name(tmp_path: Path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / ("0" * 64)).write_bytes(b"never read")
    (snapshot / "model.safetensors").symlink_to(blobs / ("0" * 64))
    before = fingerprint(str(snapshot))
    (blobs / ("0" * 64)).write_bytes(b"whatever")
    assert fingerprint(str(snapshot)) == before


def test_an_adapter_fits_its_base_wherever_that_is(model: Path, tmp_path: Path):
    adapter = Path(save_adapter(tmp_path / "adapter", model, 2, ["up_proj"], 0))
    copy = shutil.copytree(model, tmp_path / "copy")
    check_base(adapter, str(copy))  # the base that it names is here, and the same
    write_base(adapter, str(model))
    shutil.rmtree(model)
    check_base(adapter, str(copy))  # it is gone, but its fingerprint is known
    other = make_model(tmp_path / "other", "qwen2", seed=1)
    with pytest.raises(UserError, match=r"weights differ.*--base-is-the-same"):
        check_base(adapter, str(other))
    (adapter / "lowtax_base.json").unlink()
    with pytest.raises(UserError, match=r"not on this machine to be compared.*--base-is-the-same"):
        check_base(adapter, str(copy))
    config = json.loads((adapter / "adapter_config.json").read_text())
    for name in (None, str(copy)):
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))
        check_base(adapter, str(copy))


def test_a_hub_snapshot_is_the_model_of_its_name(model: Path, tmp_path: Path):
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / "abc"
    shutil.copytree(model, snapshot)
    adapter = Path(save_adapter(tmp_path / "adapter", model, 2, ["up_proj"], 0))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "owner/name"}))
    check_base(adapter, str(snapshot))


def test_results_keep_their_base(model: Path, tmp_path: Path):
    out = tmp_path / "out"
    first = base_in(out, str(model))
    record_base(out, first)
    copy = shutil.copytree(model, tmp_path / "copy")
    assert base_in(out, str(copy)).made_by == first.made_by
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert text_fingerprint(str(copy)) != text_fingerprint(str(model))
    with pytest.raises(UserError, match="another tokenizer or chat template"):
        base_in(out, str(copy))
    scaled(model)
    with pytest.raises(UserError, match="other weights than"):
        base_in(out, str(model))
    assert base_in(out, str(model), same=True).made_by == first.made_by
    assert base_in(tmp_path / "new", str(model)).made_by != first.made_by


def test_results_of_earlier_versions_keep_their_ids(model: Path, tmp_path: Path):
    (tmp_path / "old" / "replies").mkdir(parents=True)
    old = base_in(tmp_path / "old", str(model))
    assert old.made_by != base_in(tmp_path / "new", str(model)).made_by
    record_base(tmp_path / "old", old)
    os.utime(model / "config.json", ns=(1, 1))
    assert base_in(tmp_path / "old", str(model)).made_by == old.made_by
