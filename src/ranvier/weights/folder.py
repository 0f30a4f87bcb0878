"""ModelFolder: bounded, typed reads of a model folder's small files, and of nothing outside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.core.limits import LIMITS

__all__ = ["ModelFolder"]


class ModelFolder:
    """One folder. A hub cache's links into its own blobs are followed, no other link out of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def inside(self, name: str) -> Path:
        """The path of a file of the folder. Raises CheckpointError for a name or link out of it."""
        if not name or Path(name).name != name:
            raise CheckpointError(f"{self.path}: file name {name!r} leaves the model's folder.")
        path = self.path / name
        if path.is_symlink():
            home = self.path.resolve()
            target = path.resolve()
            blobs = home.parent.parent / "blobs"
            if not (target.is_relative_to(home) or target.parent == blobs):
                raise CheckpointError(f"{path}: a link that leaves the model's folder.")
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: not a regular file.")
        return path

    def text(self, name: str, *, is_required: bool = False) -> str | None:
        """A file's text, None where it is missing and may be. Raises CheckpointError."""
        path = self.inside(name)
        if not path.is_file():
            if is_required:
                raise CheckpointError(f"{path}: missing; a model folder needs it.")
            return None
        if path.stat().st_size > LIMITS.model_text_bytes_max:
            raise CheckpointError(f"{path}: larger than {LIMITS.model_text_bytes_max} bytes.")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: {error}.") from None

    def fields(self, name: str, *, is_required: bool = False) -> dict[str, Any]:
        """A file's JSON object; empty where it is missing and may be. Raises CheckpointError."""
        text = self.text(name, is_required=is_required)
        if text is None:
            return {}
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise CheckpointError(f"{self.path / name}: not valid JSON.") from None
        if not isinstance(value, dict):
            raise CheckpointError(
                f"{self.path / name}: must hold a JSON object, holds {type(value).__name__}."
            )
        return value

    def tokenizer_json(self) -> str:
        """The text of tokenizer.json. Raises CheckpointError when there is none."""
        text = self.text("tokenizer.json")
        if text is None:
            raise CheckpointError(
                f"{self.path / 'tokenizer.json'}: missing.",
                hint="Other tokenizer files are not read; see --tokenizer.",
            )
        return text

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json, with the template of chat_template.jinja where there is one."""
        fields = self.fields("tokenizer_config.json")
        template = self.text("chat_template.jinja")
        if template is not None:
            fields["chat_template"] = template
        named = fields.get("chat_template")
        if isinstance(named, list):  # an older form: [{"name": "default", "template": ...}, ...]
            found = {str(t.get("name")): t.get("template") for t in named if isinstance(t, dict)}
            fields["chat_template"] = found.get("default")
        return fields
