"""Single values of annotation files, as the readers of all formats take them."""

from ..values import as_flag, as_id, as_integer, is_boolean, is_number, shown

__all__ = ["as_flag", "as_id", "as_integer", "is_boolean", "is_number", "shown"]
