"""Text files of a user: UTF-8, with or without a byte order mark."""

from pathlib import Path

from experiments.config import ConfigError


def read_text(path: Path) -> str:
    r"""Returns the text of a UTF-8 file, whatever the locale.

    A byte order mark at the start is skipped and each "\r\n" becomes "\n"; every other
    character is kept.

    Raises:
        ConfigError: the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: must be UTF-8 text, got byte {error.object[error.start]:#04x} "
            f"at position {error.start}."
        ) from None
    except ValueError as error:  # no file has such a name
        raise ConfigError(f"{str(path)!r}: {error}.") from None
