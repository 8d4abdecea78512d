"""Settings as a person writes them: whether a value is of the right type, and which name was meant."""

import ast
from typing import Any

from focaljax.cli.main import UsageError, nearest


def check_value(key: str, value: str, default: Any) -> None:
    """Raises a UsageError unless the value, as written for the setting `key`, is of the type of its default."""
    if isinstance(default, tuple):
        try:
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed = None
        if not isinstance(parsed, tuple | list):
            raise UsageError(f"--config.{key}={value}: expected a tuple such as '{default}', in quotes")
        return
    if isinstance(default, bool):
        if value.lower() not in ("true", "false", "1", "0"):
            raise UsageError(f"--config.{key}={value}: expected true or false")
        return
    if isinstance(default, int | float):
        try:
            type(default)(value)
        except ValueError:
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise UsageError(f"--config.{key}={value}: expected {kind} such as {default}") from None


def nearest_setting(key: str, settings: dict[str, Any]) -> str:
    """Like `nearest`, but the last part of the name alone may also match: `gamma` for `loss.gamma`."""
    by_name = {setting.split(".")[-1]: setting for setting in settings}
    last = key.split(".")[-1]
    if last in by_name:
        return f" (did you mean {by_name[last]!r}?)"
    return nearest(key, settings)
