"""Uploading: exactly the adapter's own files, only when told, never of restricted data."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest

from cxrl.errors import CxrlError
from cxrl.push import main
from cxrl.rl.push import files_to_push, push_run
from cxrl.rl.trainer import Trainer


class Hub:
    """What would have been sent."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    fails: ClassVar[Exception | None] = None

    def create_repo(self, repo: str, **options: Any) -> None:
        self.calls.append((repo, options))

    def upload_folder(self, **options: Any) -> None:
        if self.fails:
            raise self.fails
        self.calls.append(("upload", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(Hub, "fails", None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return Hub


@pytest.fixture
def run(make_config: Any, fakes: dict[str, Any], tmp_path: Path) -> Path:
    Trainer(make_config(train={"num_epochs": 1}), tmp_path / "run", **fakes).run()
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names the base by its path")
        yield


def test_nothing_is_sent_without_the_flag(
    run: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run", str(run), "--to", "me/mine"]) == 2
    told = capsys.readouterr()
    assert hub.calls == []
    assert "adapter.json" in told.out
    assert "README.md" in told.out
    assert "--yes uploads" in told.err


def test_exactly_the_adapter_is_sent(run: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]) -> None:
    (run / "adapter" / "notes-on-patients.txt").write_text("a stranger")
    assert main(["--run", str(run), "--to", "me/mine", "--private", "--yes"]) == 0
    (repo, made), (_, sent) = hub.calls
    assert (repo, made) == ("me/mine", {"private": True, "exist_ok": True})
    assert sent["folder_path"] == run / "adapter"
    assert sorted(sent["allow_patterns"]) == [
        *("README.md", "ace.safetensors", "adapter.json", "pytorch_lora_weights.safetensors")
    ]
    assert capsys.readouterr().out.splitlines()[-1] == "https://huggingface.co/me/mine"


def test_restricted_data_are_never_sent(run: Path, hub: type[Hub]) -> None:
    config = (run / "config.yaml").read_text()
    for text in (config.replace("restricted: auto", "restricted: 'yes'"), "not: [yaml"):
        assert text != config
        (run / "config.yaml").write_text(text)
        with pytest.raises(CxrlError):
            push_run(run, "me/mine")
        assert main(["--run", str(run), "--to", "me/mine", "--yes"]) == 2
    assert hub.calls == []


def test_what_cannot_be_sent_is_told(run: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "a/b/c", "me/..", "me/ mine", ""):
        with pytest.raises(CxrlError, match=r"is no repository; expected OWNER/NAME"):
            push_run(run, name)
    hub.fails = ConnectionError("no network\nat all")
    with pytest.raises(CxrlError, match=r"me/mine cannot be written \(no network at all\)"):
        push_run(run, "me/mine")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CxrlError, match="HF_HUB_OFFLINE is set"):
        push_run(run, "me/mine")
    card = run / "adapter" / "README.md"
    card.write_text(card.read_text() + "Edited by its owner.\n")
    assert card in files_to_push(run)
    card.write_text("Another text")
    with pytest.raises(CxrlError, match=r"there is no model card of cxrl \(README\.md\)"):
        files_to_push(run)
    (run / "adapter" / "ace.safetensors").write_text("changed")
    with pytest.raises(CxrlError, match=r"ace\.safetensors: "):
        files_to_push(run)
    shutil.rmtree(run / "adapter")
    with pytest.raises(CxrlError, match="there is no adapter; the run has not finished"):
        files_to_push(run)
    with pytest.raises(CxrlError, match="is not a run"):
        files_to_push(run.parent)
