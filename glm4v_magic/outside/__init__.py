"""What comes from outside, before it is used: paths, and JSON in files, replies and requests.

`paths` reads what people write, `checking` holds JSON against a shape, and `lenient` has the types
of data that is written by many. Imports `core`; pydantic is imported when something is checked.
"""

from glm4v_magic.outside.checking import FileKind, checked, json_object, json_value
from glm4v_magic.outside.paths import (
    SHUT,
    expanded,
    is_endless,
    is_file,
    is_folder,
    is_shut,
    is_there,
    listed_names,
    path_text,
    require_current_folder,
    text_of,
)

__all__ = [
    "SHUT",
    "FileKind",
    "checked",
    "expanded",
    "is_endless",
    "is_file",
    "is_folder",
    "is_shut",
    "is_there",
    "json_object",
    "json_value",
    "listed_names",
    "path_text",
    "require_current_folder",
    "text_of",
]
