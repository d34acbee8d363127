"""Text: a user's file of it, read or refused."""

from pathlib import Path

from experiments.config import ConfigError


def read_text(path: Path) -> str:
    """Reads a file of UTF-8 text; a mark of the byte order is no part of it.

    Raises:
        ConfigError: it cannot be read, or is no such text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: must be UTF-8 text, got byte {error.object[error.start]:#04x} "
            f"at position {error.start}."
        ) from None
