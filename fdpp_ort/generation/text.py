"""Text to tokens and back: the folder's tokenizer.json and chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fdpp_ort.errors import FdppError
from fdpp_ort.generation.folder import read_json


class TextCodec:
    """Tokenizer and, where the folder has one, chat template."""

    def __init__(self, folder: Path):
        try:
            import tokenizers
        except ImportError as error:
            raise FdppError("the tokenizers package is not installed; pip install tokenizers") from error
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise FdppError(f"{file}: the tokenizer is missing")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # what the library raises for any broken file
            raise FdppError(f"{file}: cannot be read as a tokenizer: {error}") from error
        self._new_stream = lambda: tokenizers.decoders.DecodeStream(skip_special_tokens=True)
        self._folder = folder
        config_file = folder / "tokenizer_config.json"
        self._config: dict[str, Any] = read_json(config_file) if config_file.is_file() else {}
        self._template = self._find_template()

    def _find_template(self) -> str | None:
        file = self._folder / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        template = self._config.get("chat_template")
        if isinstance(template, list):  # several, each with a name
            return next((entry["template"] for entry in template if entry.get("name") == "default"), None)
        return template

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def _special_token(self, name: str) -> str:
        token = self._config.get(name) or ""
        return token["content"] if isinstance(token, dict) else token

    def chat_prompt(self, message: str) -> str:
        """The text of a conversation in which the user has said `message` and the assistant is to speak. FdppError: no
        template, or one that does not render."""
        if self._template is None:
            raise FdppError(f"{self._folder}: no chat template")
        try:
            import jinja2
            import jinja2.sandbox
        except ImportError as error:
            raise FdppError("this model has a chat template, which needs jinja2; pip install jinja2") from error
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            return environment.from_string(self._template).render(
                messages=[{"role": "user", "content": message}],
                add_generation_prompt=True,
                bos_token=self._special_token("bos_token"),
                eos_token=self._special_token("eos_token"),
            )
        except jinja2.TemplateError as error:
            raise FdppError(f"{self._folder}: the chat template fails: {error}") from error

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """`special_tokens`: adds what the tokenizer puts around a text (not for a chat prompt, which has its own)."""
        return self._tokenizer.encode(text, add_special_tokens=special_tokens).ids

    def encode_prompt(self, text: str, raw: bool) -> list[int]:
        """Tokens of `text` as it is (raw, or a model without chat template) or as a user's message."""
        if raw or not self.has_chat_template:
            return self.encode(text)
        return self.encode(self.chat_prompt(text), special_tokens=False)

    def decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens)

    def stream(self):
        """A function from the next token to the text that it completes, "" while a character is unfinished."""
        stream = self._new_stream()
        return lambda token: stream.step(self._tokenizer, token) or ""


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
