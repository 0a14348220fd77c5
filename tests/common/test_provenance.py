"""The machine in a card."""

from pathlib import Path

import pytest

from lowtax.common import provenance


def test_the_processor_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n\nprocessor\t: 1\nmodel name\t: Some CPU @ 2 GHz\n"
    )
    monkeypatch.setattr(provenance, "CPU_INFO", info)
    provenance.cpu.cache_clear()
    assert provenance.cpu() == "Some CPU @ 2 GHz"
    provenance.cpu.cache_clear()
    monkeypatch.setattr(provenance, "CPU_INFO", tmp_path / "absent")
    assert isinstance(provenance.cpu(), str)
    provenance.cpu.cache_clear()


def test_a_limit_of_instructions_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    widest = provenance.arithmetic()
    assert widest
    assert "@" not in widest
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert provenance.arithmetic() == f"{widest} @ AVX2"
    assert provenance.hardware()["arithmetic"] == f"{widest} @ AVX2"
