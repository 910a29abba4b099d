"""Classes of the user's own, which a config names as "module:Class"."""
from __future__ import annotations

import importlib

from jea.errors import ConfigError, nearest, quoted, shortened


def find_class(name: str, key: str) -> type:
    """Import the class "module:Class". `key` is the config's key that names it, for messages.

    The module is looked for on Python's path; jea.config puts the config's folder in front of it. A module that is
    there and fails while it is imported keeps its traceback.
    """
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name != module and not module.startswith(f"{error.name}."):
            raise  # the module is there, and one that it imports is not
        raise ConfigError(f"{key}: {shortened(name)}: there is no module {shortened(module)} in the config's folder "
                          "or on Python's path") from None
    except (TypeError, ValueError):
        raise ConfigError(f"{key}: {shortened(name)}: {quoted(module)} is no name of a module") from None
    if not isinstance(getattr(found, attribute, None), type):
        classes = [word for word, value in vars(found).items() if isinstance(value, type)]
        raise ConfigError(f"{key}: {shortened(name)}: {shortened(module)} has no class {quoted(attribute)}"
                          f"{nearest(attribute, classes)}")
    return getattr(found, attribute)
